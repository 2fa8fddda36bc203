"""Data sets of a Hugging Face hub on loopback, read by huggingface_hub's own driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bei_core.errors import CheckpointError, ConfigError
from bei_core.jobs import JobOptions, embed
from bei_core.jobs.inputs import Part
from bei_core.jobs.job import Job
from tests.hub import Hub
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.test_job import run

URL = "hf://datasets/owner/texts"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    opens(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Hub() as hub:
        urls = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", urls)
        hub.add("owner/texts", {"a.jsonl": lines(20), "b#1.jsonl": lines(10), "README.md": b"A data set."})
        yield hub


def lines(num_rows: int) -> bytes:
    return b"".join(json.dumps({"id": row, "text": "the"}).encode() + b"\n" for row in range(num_rows))


@pytest.mark.parametrize(
    ("path", "num_rows"), [("", 30), ("/a.jsonl", 20), ("/?.jsonl", 20), ("/b#1.jsonl", 10), ("@main/*.jsonl", 30)]
)
def test_a_data_set_is_read(hub: Hub, tmp_path: Path, path: str, num_rows: int) -> None:
    report = run(URL + path, tmp_path / "out", keep=("id",))
    assert (report.num_rows, report.num_rejected) == (num_rows, 0)
    assert len(pq.read_table(tmp_path / "out")) == num_rows


def test_a_second_job_of_the_process_reads_what_is_there_then(hub: Hub, tmp_path: Path) -> None:
    assert run(URL, tmp_path / "out").num_rows == 30
    hub.add("owner/texts", {"a.jsonl": lines(50)})
    assert run(URL, tmp_path / "later").num_rows == 50
    with pytest.raises(ConfigError, match="is the output of another job: its `input` was"):
        run(URL, tmp_path / "out")


def test_a_data_set_that_changes_while_the_job_runs_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare = Job.prepare

    def changed(job: Job, part: Part) -> object:
        if part.index == 1:
            hub.add("owner/texts", {"a.jsonl": lines(20).replace(b"the", b"and")})
        return prepare(job, part)

    monkeypatch.setattr(Job, "prepare", changed)
    with pytest.raises(CheckpointError, match=r"a\.jsonl has changed since the job began"):
        run(f"{URL}/a.jsonl", tmp_path / "out", rows_per_part=10)


def test_each_part_asks_for_its_file_and_not_for_the_list_of_its_folder(hub: Hub, tmp_path: Path) -> None:
    run(f"{URL}/a.jsonl", tmp_path / "whole", rows_per_part=20)
    num_lists = len(asked(hub, "tree"))
    hub.requests.clear()
    run(f"{URL}/a.jsonl", tmp_path / "out", rows_per_part=2)
    assert (len(asked(hub, "tree")), len(asked(hub, "paths-info"))) == (num_lists, 10)


def asked(hub: Hub, what: str) -> list[str]:
    return [path for _, path in hub.requests if f"/{what}/" in path]


def test_the_token_of_the_settings_is_for_the_data_set_too(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/texts"].token = "sesame"
    with pytest.raises(CheckpointError, match="owner/texts"):
        run(URL, tmp_path / "out")
    settings = {"model_id": "owner/name", "hf_token": "sesame"}
    assert embed(URL, tmp_path / "out", settings=settings, options=JobOptions()).num_rows == 30
