"""The same rows from every format, in parts of any size; a row that cannot be read harms no other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.errors import CheckpointError, ConfigError
from bei_core.jobs import lines
from bei_core.jobs.inputs import Reader, open_input
from bei_core.jobs.options import JobOptions
from tests.unit.jobs.test_compressed import COMPRESS

TEXTS = ["plain", 'with "quotes", commas', "two\nlines", "éü 漢字 🙂", "tab\tbed", "", "  spaces  ", "'single'", "last"]
ROWS = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.parquet": lambda path: pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4),
    "a.arrow": lambda path: pyarrow.feather.write_feather(
        pa.Table.from_pylist(ROWS), str(path), chunksize=4, compression="uncompressed"
    ),
    "a.jsonl": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS)),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    **{f"a.jsonl{end}": lambda path: write_compressed(path, "jsonl") for end in COMPRESS},
    "a.csv.zst": lambda path: write_compressed(path, "csv"),
}


def write_compressed(path: Path, kind: str) -> None:
    plain = path.with_name(f"plain.{kind}.tmp")
    WRITERS[f"a.{kind}"](plain)
    path.write_bytes(COMPRESS[path.suffix](plain.read_bytes()))
    plain.unlink()


def read(location: str, options: JobOptions, order: Callable[[Sequence[int]], Sequence[int]] = list) -> list[object]:
    """The texts of all parts; the parts are read in `order`."""
    data, reader = open_input(location, options), Reader(location)
    found = {}
    for index in order(range(len(data.parts))):
        rows = reader.read(data.parts[index], options, data.schema)
        assert not rows.errors
        found[index] = rows.texts[0]
    reader.close()
    return [text for index in sorted(found) for text in found[index]]


@pytest.mark.parametrize("rows_per_part", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_texts(tmp_path: Path, name: str, rows_per_part: int) -> None:
    WRITERS[name](tmp_path / name)
    options = JobOptions(rows_per_part=rows_per_part)
    assert read(str(tmp_path / name), options) == TEXTS
    assert read(str(tmp_path / name), options, lambda parts: list(reversed(parts))) == TEXTS


@pytest.mark.parametrize(
    "name", [name for name in WRITERS if "jsonl" in name or ("csv" not in name and "tsv" not in name)]
)
def test_columns_that_are_kept_have_their_types(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    data = open_input(str(tmp_path / name), JobOptions(keep=("id",)))
    assert data.schema == pa.schema([("id", pa.int64())])
    assert Reader(data.location).read(data.parts[0], JobOptions(), data.schema).kept["id"].to_pylist() == list(range(9))


def test_columns_of_csv_are_texts(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    assert open_input(str(tmp_path / "a.csv"), JobOptions(keep=("id",))).schema == pa.schema([("id", pa.string())])


def test_each_line_of_a_text_file_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\ntwo")
    assert read(str(tmp_path / "a.txt"), JobOptions(rows_per_part=2)) == ["one", "", "two"]


@pytest.mark.parametrize("location", ["", "/", "/*.jsonl", "/sub/b.jsonl"])
def test_a_folder_a_glob_or_a_file(tmp_path: Path, location: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jsonl", "sub/b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "README.md").write_text("no data")
    expected = {"/*.jsonl": ["a.jsonl", "c.jsonl"], "/sub/b.jsonl": ["sub/b.jsonl"]}
    found = read(f"{tmp_path}{location}", JobOptions())
    assert found == expected.get(location, ["a.jsonl", "c.jsonl", "sub/b.jsonl"])


def test_files_of_no_known_format_among_others_are_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jsonl", "sub/b.jsonl", "_SUCCESS", ".a.crc"):
        (tmp_path / name).write_text('{"text": "one"}\n')
    assert read(f"{tmp_path}/*.jsonl", JobOptions()) == ["one"]
    assert not caplog.messages
    for name in ("b.jsonl.zip", "c.parquet.gz", "README.md", "z.npy"):
        (tmp_path / "sub" / name).write_text("")
    assert read(str(tmp_path), JobOptions()) == ["one", "one"]
    (line,) = caplog.messages
    assert line.startswith(f"skipping files of no known format (4): {tmp_path}/sub/README.md, ")
    assert "/sub/b.jsonl.zip, " in line


def test_bad_lines_are_errors_of_their_rows(tmp_path: Path) -> None:
    written = ['{"text": "one", "id": 1}', "{oops", "[1]", '{"text": "four", "id": "x"}', '{"text": "five", "id": 5}']
    (tmp_path / "a.jsonl").write_bytes("\n".join(written).encode() + b'\n{"text": "\xff"}\n')
    options = JobOptions(keep=("id",))
    (tmp_path / "first.jsonl").write_text('{"text": "t", "id": 1}\n')
    data = open_input(f"{tmp_path}/first.jsonl", options)
    part = open_input(f"{tmp_path}/a.jsonl", JobOptions()).parts[0]
    rows = Reader(f"{tmp_path}/a.jsonl").read(part, options, data.schema)
    assert sorted(rows.errors) == [1, 2, 3, 5]
    assert rows.errors[2] == "not a JSON object"
    assert rows.errors[3] == "column 'id' is not of the type int64"
    assert rows.texts[0][0] == "one"
    assert rows.kept["id"].to_pylist() == [1, None, None, None, 5, None]


def test_bad_rows_of_csv_are_errors_of_their_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,id\none,1\ntwo\n\nthree,3,x\nf\xffour,4\nfive,5\n")
    options = JobOptions()
    data = open_input(f"{tmp_path}/a.csv", options)
    rows = Reader(f"{tmp_path}/a.csv").read(data.parts[0], options, data.schema)
    assert rows.errors == {
        1: "1 values where the header has 2",
        2: "an empty line",
        3: "3 values where the header has 2",
        4: "not UTF-8",
    }
    assert [rows.texts[0][0], rows.texts[0][5]] == ["one", "five"]


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")), max_size=20),
    size=st.integers(1, 5),
)
def test_any_text_comes_back_from_csv(texts: list[str], size: int) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows([["text", "n"], *([text, "1"] for text in texts)])
    file = lines.CsvFile("a.csv", io.BytesIO(written.getvalue().encode()))
    found = [file.read(split, ["text"], pa.schema([])) for split in file.splits(size)]
    assert not any(rows.errors for rows in found)
    assert [text for rows in found for text in rows.texts[0]] == texts


@pytest.mark.parametrize("name", WRITERS)
def test_an_unknown_column_is_refused_with_those_that_there_are(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    with pytest.raises(ConfigError, match="has no column 'body'; it has id, text"):
        open_input(str(tmp_path / name), JobOptions(column="body"))


def test_files_with_different_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "t", "id": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "t", "id": "x"}\n')
    with pytest.raises(ConfigError, match=r"b\.jsonl has the columns id: string, the files before it id: int64"):
        open_input(str(tmp_path), JobOptions(keep=("id",)))


def test_a_folder_without_data_is_refused_with_the_formats(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file of a known format; known are \.parquet"):
        open_input(str(tmp_path), JobOptions())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_that_is_not_of_its_format_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not that at all")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: "):
        open_input(str(tmp_path / name), JobOptions())


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("content", [b"", b"\n1,2\n"], ids=["empty", "no header"])
def test_a_table_without_a_header_has_no_columns(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} has no column 'text'; it has none"):
        open_input(str(tmp_path / name), JobOptions())


def test_a_file_that_is_damaged_after_it_was_planned_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["one"] * 1000}), path, compression="zstd", use_dictionary=False)
    data = open_input(str(path), JobOptions())
    content = bytearray(path.read_bytes())
    content[30:60] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.parquet cannot be read: "):
        Reader(str(path)).read(data.parts[0], JobOptions(), data.schema)
