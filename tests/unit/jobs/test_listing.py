"""Which files of a folder or a glob are data: hidden files, links, and folders that a glob matches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bei_core.errors import CheckpointError, ConfigError
from bei_core.jobs.inputs import Reader, open_input
from bei_core.jobs.listing import is_hidden
from bei_core.jobs.options import JobOptions
from tests.unit.jobs.test_odd_inputs import opened, texts


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f'{{"text": "{name}"}}\n')


@pytest.mark.parametrize(
    ("glob", "path", "hidden"),
    [
        ("/d/a*.jsonl", "/d/a.jsonl", False),
        ("/d/part*", "/d/part_1.jsonl", False),
        ("/d/_n*", "/d/_n_1.jsonl", False),
        ("/d/.n*", "/d/.n.jsonl", False),
        ("/d/*.jsonl", "/d/_x.jsonl", True),
        ("/d/*.jsonl", "/d/.x.jsonl", True),
        ("/d/?x.jsonl", "/d/_x.jsonl", True),
        ("/.c/_d/*.jsonl", "/.c/_d/x.jsonl", False),
        ("/d/*/x.jsonl", "/d/_tmp/x.jsonl", True),
        ("/d/_*/x.jsonl", "/d/_tmp/x.jsonl", False),
        ("/d/_*/*.jsonl", "/d/_tmp/_x.jsonl", True),
        ("/d/*/x.jsonl", "/d/_day=1/x.jsonl", False),
        ("/d/**", "/d/a/_tmp/x.jsonl", True),
        ("/d/**", "/d/x.jsonl", False),
        ("/d/**/_x.jsonl", "/d/_x.jsonl", False),
        ("/d/**/_x.jsonl", "/d/a/b/_x.jsonl", False),
        ("/d/**/_x.jsonl", "/d/a/_b/_x.jsonl", True),
        ("/_d/**/x*", "/_d/a/x_1", False),
        ("bucket/a*", "/bucket/a_1.jsonl", False),
        ("/d/_x.jsonl", "/d/_x.jsonl", False),
    ],
)
def test_a_name_is_hidden_unless_the_glob_begins_as_it_does(glob: str, path: str, hidden: bool) -> None:
    assert is_hidden(path, glob) == hidden


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("a*.jsonl", ["a.jsonl"]),
        ("part*", ["part.jsonl", "part_1.jsonl"]),
        ("_n*", ["_n_1.jsonl"]),
        ("*.jsonl", ["a.jsonl", "part.jsonl", "part_1.jsonl"]),
    ],
)
def test_a_glob_reads_what_it_matches_but_hidden_files(tmp_path: Path, glob: str, found: list[str]) -> None:
    write(tmp_path, "a.jsonl", "part.jsonl", "part_1.jsonl", "_n_1.jsonl", "_x.jsonl")
    assert texts(opened(tmp_path / glob)[1]) == found


@pytest.mark.parametrize("location", ["data", "data/*.jsonl", "data/a.jsonl"])
def test_a_link_has_the_version_of_its_target(tmp_path: Path, location: str) -> None:
    write(tmp_path, "blobs/1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").symlink_to(tmp_path / "blobs/1")
    os.utime(tmp_path / "data/a.jsonl", (1, 1), follow_symlinks=False)
    data = open_input(str(tmp_path / location), JobOptions())
    reader = Reader(str(tmp_path / location), data.files)
    assert reader.read(data.parts[0], JobOptions(), data.schema).texts == [["blobs/1"]]
    os.utime(tmp_path / "blobs/1", (2, 2))
    with pytest.raises(CheckpointError, match=r"a\.jsonl has changed since the job began"):
        reader.read(data.parts[0], JobOptions(), data.schema)
    reader.close()


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"a\.jsonl cannot be read: "):
        open_input(str(tmp_path), JobOptions())


def test_folders_that_a_glob_matches_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "day0.jsonl", "day1.jsonl/part-0.jsonl", "_day/a.jsonl")
    assert texts(opened(tmp_path / "day*.jsonl")[1]) == ["day0.jsonl"]
    assert f"skipping folders (1): {tmp_path}/day1.jsonl; " in caplog.text
    assert f"give the files in them, such as {tmp_path}/day*.jsonl/*" in caplog.text
    caplog.clear()
    assert texts(opened(tmp_path / "**")[1]) == ["day0.jsonl", "day1.jsonl/part-0.jsonl"]
    assert texts(opened(tmp_path / "day1.jsonl")[1]) == ["day1.jsonl/part-0.jsonl"]
    assert "skipping" not in caplog.text


def test_a_folder_behind_a_link_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "data/a.jsonl", "other/b.jsonl")
    (tmp_path / "data/sub").symlink_to(tmp_path / "other")
    assert texts(opened(tmp_path / "data")[1]) == ["data/a.jsonl"]
    assert f"skipping folders (1): {tmp_path}/data/sub; give the files in them" in caplog.text
    assert texts(opened(tmp_path / "data/sub/*")[1]) == ["other/b.jsonl"]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("hidden", r"hidden has only hidden files \(2\): .*/hidden/\.b\.jsonl, .*/hidden/_a\.jsonl; .*name them"),
        ("hidden/*", r"hidden/\* has only hidden files \(2\)"),
        ("day*", r"day\* has only folders \(1\): .*/day1\.jsonl; give the files in them, such as .*/day\*/\*"),
        ("other", r"other has no file of a known format; known are "),
    ],
)
def test_why_there_is_no_data_is_said(tmp_path: Path, location: str, said: str) -> None:
    write(tmp_path, "hidden/_a.jsonl", "hidden/.b.jsonl", "day1.jsonl/part-0.jsonl", "other/a.zip")
    with pytest.raises(ConfigError, match=said):
        open_input(str(tmp_path / location), JobOptions())
