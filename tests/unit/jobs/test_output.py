"""The output folder of a job: a new one, that of the same job, and no other."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bei_core.errors import BeiError, ConfigError, StartError
from bei_core.jobs import JobOptions, RayOptions, embed
from bei_core.jobs.inputs import Part
from bei_core.jobs.output import Folder, Output
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


@pytest.mark.parametrize("scheme", ["file", "local", "FILE"])
def test_the_url_of_a_folder_is_that_folder_with_its_lock_and_its_renames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, scheme: str
) -> None:
    opens(monkeypatch)
    run(source, tmp_path / "out")
    url = f"{scheme}://{tmp_path}/out"
    assert run(f"{scheme}://{source}", url).num_parts_before == 7, "it is the same job"
    with Folder(url).locked(), pytest.raises(ConfigError, match="another job writes in"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://out", "memory://out ends with this process; give a folder or an object store"),
        ("sftp://host/out", "sftp://host/out: no object store has this scheme; known are s3"),
        ("hf://datasets/a/b", "no object store has this scheme"),
        ("s3://bucket/out?key=sesame", "s3://bucket/out: the URL of an output has no \\? and no #"),
        ("s3://bucket/out#1", "the URL of an output has no"),
        ("file://out", "file://out has no absolute path; write file:///folder"),
    ],
)
def test_a_url_where_files_would_not_stay_whole_is_refused(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(StartError, match=said):
        run(tmp_path / "in.jsonl", url)


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


def test_a_job_of_which_a_part_is_missing_at_the_end_fails_and_has_no_manifest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    opens(monkeypatch)
    publish = Output.publish

    def elsewhere(output: Output, part: Part, table: pa.Table, rejected: dict[int, str]) -> None:
        if part.index != 5:
            publish(output, part, table, rejected)

    monkeypatch.setattr(Output, "publish", elsewhere)
    with pytest.raises(
        BeiError,
        match=r"out has no part-00005\.parquet \(1 of 7 parts are missing\).* do not share this folder",
    ):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "_manifest.json").exists()
    monkeypatch.undo()
    opens(monkeypatch)
    assert run(source, tmp_path / "out").num_parts == 1
    assert (tmp_path / "out" / "_manifest.json").exists()


def test_relative_paths_are_those_of_the_working_folder_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    """So a job that was begun by relative paths is the same job by absolute ones."""
    opens(monkeypatch)
    monkeypatch.chdir(tmp_path)
    run("in.jsonl", "out")
    monkeypatch.chdir("/")
    assert run(source, tmp_path / "out").num_parts_before == 7


def test_vectors_are_neither_compressed_nor_counted_and_other_columns_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opens(monkeypatch)
    kept = {"price": [0.5] * 64, "name": ["one"] * 64, "of": [{"width": 2.5, "tags": ["a"]}] * 64}
    pq.write_table(pa.table({"text": ["the"] * 64, **kept}), tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out", keep=tuple(kept), rows_per_part=64)
    group = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").row_group(0)
    columns = {each.path_in_schema: each for each in map(group.column, range(group.num_columns))}
    vectors = columns.pop("embedding.list.element")
    assert (vectors.compression, vectors.has_dictionary_page, vectors.is_stats_set) == ("UNCOMPRESSED", False, False)
    assert {(each.compression, each.is_stats_set) for each in columns.values()} == {("ZSTD", True)}
    assert {path for path, each in columns.items() if each.has_dictionary_page} == columns.keys() - {
        "price",
        "of.width",
    }
    assert columns["price"].statistics.max == 0.5
    assert pq.read_table(tmp_path / "out").select(list(kept)).to_pydict() == kept
