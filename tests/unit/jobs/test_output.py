"""The output folder of a job: a new one, that of the same job, and no other."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from bei_core.errors import ConfigError
from bei_core.jobs import JobOptions, RayOptions, embed
from bei_core.jobs.output import Folder
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.test_job import contents, run


def test_unfinished_files_of_a_killed_process_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    opens(monkeypatch)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".part-00000.parquet.12345.tmp").write_bytes(b"half")
    run(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"output_dtype": "bit"}, r'`options` was {"output_dtype":"float32"}'), ({"keep": ("id",)}, r"`input` was")],
)
def test_the_folder_of_another_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, changed: dict[str, Any], said: str
) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out")
    with pytest.raises(ConfigError, match=f"is the output of another job: its {said}"):
        run(source, tmp_path / "out", **changed)


@pytest.mark.parametrize("content", [b"{not", b"[1]", b"\xff"])
def test_a_damaged_description_of_a_job_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, content: bytes
) -> None:
    opens(monkeypatch)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_job.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"_job\.json in .*out is damaged; give another folder, or delete it"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("output", ["in", "in/out", "in/../in/out"])
def test_an_output_in_the_input_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str) -> None:
    opens(monkeypatch)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "the"}\n')
    with pytest.raises(ConfigError, match=r"is in the input .*; give a folder outside it"):
        run(tmp_path / "in", tmp_path / output)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.jsonl"]
    run(tmp_path / "in", tmp_path / "in2")


@pytest.mark.parametrize("source", ["*/*.parquet", "**/*.parquet", "o*/part-*"])
def test_an_output_that_a_glob_of_the_input_has_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match=r"is in the input .*; give a folder outside it"):
        run(tmp_path / source, tmp_path / "out")


def test_input_that_changed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out")
    with source.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(ConfigError, match="its `input` was"):
        run(source, tmp_path / "out")


def test_the_folder_of_another_job_that_is_done_is_refused_on_ray_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out")
    options = JobOptions(rows_per_part=16, output_dtype="int8")
    with pytest.raises(ConfigError, match="is the output of another job"):
        embed(source, tmp_path / "out", settings={"model_id": "owner/name"}, options=options, ray=RayOptions())


def test_two_jobs_do_not_write_in_one_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opens(monkeypatch)
    with Folder(str(tmp_path / "out")).locked(), pytest.raises(ConfigError, match="another job writes in"):
        run(source, tmp_path / "out")
    assert not caplog.messages, "nothing waits"


def test_a_job_writes_to_a_volume_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    opens(monkeypatch)
    monkeypatch.setattr("fcntl.flock", refuse)
    assert run(source, tmp_path / "out").num_rows == 100


def test_output_in_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "local")
    run(source, f"file://{tmp_path}/store")
    stored = contents(tmp_path / "store")
    assert stored == {name: content for name, content in contents(tmp_path / "local").items() if name != ".lock"}


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("name", ["part-00000.parquet", "thesis.txt"])
def test_an_output_folder_with_other_files_is_refused_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, name: str, scheme: str
) -> None:
    opens(monkeypatch)
    before = {name: b"mine", ".notes.tmp": b"mine, too"}
    (tmp_path / "out").mkdir()
    for each, content in before.items():
        (tmp_path / "out" / each).write_bytes(content)
    with pytest.raises(ConfigError, match=f"out has files that are not the output of a job, such as {name}"):
        run(source, f"{scheme}{tmp_path}/out")
    assert contents(tmp_path / "out") == before
