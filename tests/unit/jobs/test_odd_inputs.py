"""Files as programs write them: byte order marks, streams, views, nulls, bytes that are no text, many small batches."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from bei_core.errors import CheckpointError, ConfigError
from bei_core.jobs import lines
from bei_core.jobs.columns import ParquetFile
from bei_core.jobs.datafile import Rows, Split
from bei_core.jobs.inputs import Input, Reader, open_input
from bei_core.jobs.options import JobOptions
from bei_core.jobs.output import part_name

BOM = b"\xef\xbb\xbf"
NOT_UTF8 = pa.StringArray.from_buffers(
    3, pa.array([0, 3, 6, 8], pa.int32()).buffers()[1], pa.py_buffer(b"the\xff\xfeaof")
)


def opened(location: Path, **options: object) -> tuple[Input, list[Rows]]:
    """A data set and the rows of its parts."""
    chosen = JobOptions(**options)  # type: ignore[arg-type]
    data, reader = open_input(str(location), chosen), Reader(str(location))
    try:
        return data, [reader.read(part, chosen, data.schema) for part in data.parts]
    finally:
        reader.close()


def texts(parts: list[Rows]) -> list[object]:
    return [text for rows in parts for text in rows.texts[0]]


def kept(parts: list[Rows], column: str) -> list[object]:
    return [value for rows in parts for value in rows.kept[column].to_pylist()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text":"one"}\n{"text":"two"}\n'),
        ("a.txt", b"one\ntwo\n"),
        ("a.csv", b'"text","id"\n"one",1\n"two",2\n'),
        ("a.csv", b"text,id\none,1\ntwo,2\n"),
    ],
)
@pytest.mark.parametrize("rows_per_part", [1, 10])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, content: bytes, rows_per_part: int) -> None:
    (tmp_path / name).write_bytes(BOM + content)
    _, parts = opened(tmp_path / name, rows_per_part=rows_per_part)
    assert texts(parts) == ["one", "two"]
    assert not any(rows.errors for rows in parts)


def test_parts_that_end_within_batches_do_not_nest(tmp_path: Path) -> None:
    table = pa.table({"text": [str(index) for index in range(20_000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    _, parts = opened(tmp_path / "a.parquet", rows_per_part=7)
    assert texts(parts) == table["text"].to_pylist()


class CountingFile(io.FileIO):
    """Keeps the size of the largest read."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size) or b""
        self.largest = max(self.largest, len(content))
        return content


def test_a_group_of_rows_is_not_read_whole(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{index:05} " + "x" * 2000 for index in range(5000)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    with CountingFile(tmp_path / "a.parquet") as file:
        found = ParquetFile("a.parquet", file).read(Split(0, 5000), ["text"], pa.schema([]))
        assert found.texts[0] == table["text"].to_pylist()
        assert file.largest < table.nbytes / 4


def stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def feather(path: Path, table: pa.Table) -> None:
    pyarrow.feather.write_feather(table, str(path), chunksize=7, compression="lz4")


@pytest.mark.parametrize("write", [stream, feather])
@pytest.mark.parametrize("rows_per_part", [3, 7, 100])
def test_arrow_as_a_file_and_as_a_stream(
    tmp_path: Path, write: Callable[[Path, pa.Table], None], rows_per_part: int
) -> None:
    table = pa.table({"text": [str(index) for index in range(20)], "id": list(range(20))})
    write(tmp_path / "a.arrow", table)
    data, parts = opened(tmp_path / "a.arrow", rows_per_part=rows_per_part, keep=("id",))
    assert (texts(parts), kept(parts, "id")) == (table["text"].to_pylist(), list(range(20)))
    again = Reader(data.location).read(data.parts[-1], JobOptions(), data.schema)
    assert again.texts == parts[-1].texts


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=["large", "view", "dict"]
)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_every_type_of_text_is_read_and_copied(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    values = ["one", None, "two"] * 4
    column = pa.array(values, pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    table = pa.table({"text": column, "copy": column})
    write = {"a.parquet": lambda: pq.write_table(table, tmp_path / name, row_group_size=1)}
    write.get(name, lambda: stream(tmp_path / name, table))()
    _, parts = opened(tmp_path / name, keep=("copy",), rows_per_part=5)
    assert texts(parts) == values
    firsts = [value for rows in parts for value in rows.kept["copy"].take([0, 1]).to_pylist()]
    assert firsts == ["one", None, "two", "one", None, "two"]


def test_bytes_that_are_no_text_are_errors_of_their_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": NOT_UTF8}), tmp_path / "a.parquet")
    _, (rows,) = opened(tmp_path / "a.parquet")
    assert rows.texts == [["the", None, "of"]]
    assert rows.errors == {1: "not UTF-8: invalid start byte at byte 0 of the text"}


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.int64(), pa.list_(pa.string()), pa.binary()], ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_column_of_another_type_is_refused(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array([None, None], kind)})
    pq.write_table(table, tmp_path / name) if name == "a.parquet" else stream(tmp_path / name, table)
    said = f"the column 'text' has no texts, but values of type {kind}".partition("<")[0]
    with pytest.raises(ConfigError, match=re.escape(said)):
        open_input(str(tmp_path / name), JobOptions())


def test_a_column_of_json_without_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n{"text": null}\n{"text": [2]}\n')
    with pytest.raises(ConfigError, match="the column 'text' has no texts, but values of type int and list"):
        open_input(str(tmp_path / "a.jsonl"), JobOptions())
    (tmp_path / "b.jsonl").write_text('{"text": 1}\n{"text": "two"}\n')
    assert texts(opened(tmp_path / "b.jsonl")[1]) == [1, "two"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_utf16_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    text = "text\none\n" if encoding == "utf-16" else "\ufefftext\none\n"
    (tmp_path / name).write_text(text, encoding=encoding)
    with pytest.raises(ConfigError, match=rf"{name} is in UTF-16; convert it to UTF-8"):
        open_input(str(tmp_path / name), JobOptions())


@pytest.mark.parametrize("content", ['[\n {"text": "one"},\n {"text": "two"}\n]', '[{"text": "one"}]', "[\n"])
def test_a_json_array_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.json is a JSON array; write one object a line"):
        open_input(str(tmp_path / "a.json"), JobOptions())


def test_a_quotation_mark_that_is_not_closed_does_not_join_rows_silently(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,id\none,1\n"two,2\nthree,3\n')
    _, (rows,) = opened(tmp_path / "a.csv")
    assert rows.errors == {1: "not CSV: unexpected end of data"}
    assert rows.texts[0][0] == "one"


def test_a_header_that_is_not_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,id\rone,1\r")
    with pytest.raises(ConfigError, match=r"a\.csv: the header is not CSV: "):
        open_input(str(tmp_path / "a.csv"), JobOptions())


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one\n")
    assert texts(opened(tmp_path / "a[1].txt")[1]) == ["one"]


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    for name, error in (("a.jsonl", "a.jsonl does not exist"), ("*.jsonl", "no file of a known format")):
        with pytest.raises(ConfigError, match=error):
            open_input(str(tmp_path / name), JobOptions())


def test_a_file_without_bytes_among_others_has_no_rows(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", ""), ("b.jsonl", '{"text": "one"}\n'), ("c.csv", ""), ("d.jsonl", "")):
        (tmp_path / name).write_text(content)
    assert texts(opened(tmp_path)[1]) == ["one"]


def test_a_column_of_nulls_takes_the_type_that_other_files_give_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "t", "id": null, "tag": null}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "t", "id": 5, "tag": null}\n')
    data, parts = opened(tmp_path, keep=("id", "tag"))
    assert data.schema == pa.schema([("id", pa.int64()), ("tag", pa.string())])
    assert kept(parts, "id") == [None, 5]


def test_a_column_that_is_required_in_one_file_only(tmp_path: Path) -> None:
    for name, nullable in (("a.parquet", True), ("b.parquet", False)):
        schema = pa.schema([("text", pa.string()), pa.field("id", pa.int64(), nullable=nullable)])
        pq.write_table(pa.table({"text": ["t"], "id": [1]}, schema), tmp_path / name)
    assert kept(opened(tmp_path, keep=("id",))[1], "id") == [1, 1]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("text,text\none,two\n")
    pq.write_table(pa.Table.from_arrays([["one"], ["two"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=rf"{name} has 2 columns 'text'; rename all but one"):
        open_input(str(tmp_path / name), JobOptions())


def test_numbers_of_over_64_bits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "t", "id": 18446744073709551616}\n')
    with pytest.raises(ConfigError, match="numbers of over 64 bits"):
        open_input(str(tmp_path / "a.jsonl"), JobOptions(keep=("id",)))


def test_names_of_parts_are_in_the_order_of_parts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("t\n" * 100_001)
    names = [part_name(part) for part in open_input(str(tmp_path / "a.txt"), JobOptions(rows_per_part=1)).parts]
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("part-000000.parquet", "part-100000.parquet")


LONG = [b"the", b"x" * 1000, b"of", b"y" * 2500]
LONG_FILES = {
    "a.txt": b"".join(line + b"\n" for line in LONG),
    "a.jsonl": b"".join(b'{"text": "%s"}\n' % line for line in LONG),
    "a.csv": b"text,id\n" + b"".join(b"%s,1\n" % line for line in LONG),
}


@pytest.mark.parametrize("name", LONG_FILES)
@pytest.mark.parametrize("rows_per_part", [1, 2, 10])
def test_a_row_that_is_too_long_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, rows_per_part: int
) -> None:
    monkeypatch.setattr(lines, "_MAX_ROW_BYTES", 100)
    (tmp_path / name).write_bytes(LONG_FILES[name])
    data, parts = opened(tmp_path / name, rows_per_part=rows_per_part)
    assert texts(parts) == ["the", None, "of", None]
    found = {
        part.split.first + row: reason
        for part, rows in zip(data.parts, parts, strict=True)
        for row, reason in rows.errors.items()
    }
    assert list(found) == [1, 3]
    assert all(reason.startswith("the row has ") and "at most 100 are read" in reason for reason in found.values())


def test_hidden_files_of_a_folder_are_not_data(tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/b.jsonl", "_day=1/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    for name in ("._a.jsonl", "_rejected-00000.jsonl", ".ipynb_checkpoints/a.jsonl", "_temporary/0/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert texts(opened(tmp_path)[1]) == ["_day=1/c.jsonl", "a.jsonl", "sub/b.jsonl"]
    assert texts(opened(tmp_path / "*.jsonl")[1]) == ["a.jsonl"]
    (tmp_path / "_named.jsonl").write_text('{"text": "named"}\n')
    assert texts(opened(tmp_path / "_named.jsonl")[1]) == ["named"]
    assert texts(opened(tmp_path / "_name*.jsonl")[1]) == ["named"]


def test_a_header_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,prénom\nthe,x\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"a\.csv: the header is not UTF-8; convert the file to UTF-8"):
        open_input(str(tmp_path / "a.csv"), JobOptions())


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jsonl")).write_text('{"text": "the"}\n')
    with pytest.raises(ConfigError, match=r"a\\udcff\.jsonl' is not UTF-8; rename it"):
        open_input(str(tmp_path), JobOptions())


def test_a_key_of_an_object_that_would_be_lost_is_an_error_of_its_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lines, "_SAMPLE_ROWS", 2)
    rows = [
        '{"a": 1, "b": [{"c": 1}]}',
        '{"a": null}',
        '{"a": 1, "z": 2}',
        '{"b": [{"c": 1}, {"y": 2}]}',
        '{"b": []}',
        "null",
    ]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "the", "meta": {row}}}\n' for row in rows))
    _, (found,) = opened(tmp_path / "a.jsonl", keep=("meta",))
    assert found.errors == {
        2: "column 'meta' has the key 'z', which the first rows do not have",
        3: "column 'meta' has the key 'y', which the first rows do not have",
    }
    assert found.kept["meta"].to_pylist()[4:] == [{"a": None, "b": []}, None]


def test_a_column_that_is_kept_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="`keep` has a column twice: id, id"):
        JobOptions(keep=("id", "id"))


@pytest.mark.parametrize("change", ["grows", "is replaced", "is deleted"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_that_changes_while_the_job_runs_is_named(tmp_path: Path, name: str, change: str) -> None:
    table = pa.table({"text": ["the"] * 100})
    path = tmp_path / name

    def write() -> None:
        if name == "a.parquet":
            pq.write_table(table, path)
        else:
            path.write_text('{"text": "the"}\n' * 100)

    write()
    data = open_input(str(path), JobOptions(rows_per_part=10))
    reader = Reader(str(path), data.files)
    reader.read(data.parts[0], JobOptions(), data.schema)
    if change == "grows":
        with path.open("ab") as file:
            file.write(b"more")
    else:
        path.unlink()
    if change == "is replaced":
        write()
    with pytest.raises(
        CheckpointError, match=f"{name} (has changed since the job began; start it in|cannot be read: )"
    ):
        reader.read(data.parts[1], JobOptions(), data.schema)
    reader.close()
