"""Columns that are copied to the output: of every type that Parquet has, also of files whose types differ."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bei_core.errors import ConfigError
from bei_core.jobs.inputs import open_input
from bei_core.jobs.options import JobOptions
from tests.unit.jobs.test_odd_inputs import kept, opened, stream, texts

NOT_COPIED = {
    "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    "runs": pa.RunEndEncodedArray.from_arrays([1], ["a"]),
    "object without a key": pa.array([{}], pa.struct([])),
}


@pytest.mark.parametrize("kind", NOT_COPIED)
def test_a_column_that_cannot_be_copied_is_refused(tmp_path: Path, kind: str) -> None:
    stream(tmp_path / "a.arrow", pa.table({"text": ["the"], "copy": NOT_COPIED[kind]}))
    with pytest.raises(ConfigError, match=r"`keep` has copy, of the type .*, which cannot be copied into Parquet"):
        open_input(str(tmp_path / "a.arrow"), JobOptions(keep=("copy",)))


VIEW = pa.string_view()
OF_VIEWS = {
    "list": (pa.list_(VIEW), ["a"]),
    "large list": (pa.large_list(VIEW), ["a"]),
    "fixed list": (pa.list_(VIEW, 1), ["a"]),
    "object": (pa.struct([("n", pa.int64()), ("v", VIEW)]), {"n": 1, "v": "a"}),
    "map": (pa.map_(pa.string(), VIEW), [("k", "a")]),
    "nested": (pa.list_(pa.struct([("v", pa.list_(VIEW))])), [{"v": ["a"]}]),
}


@pytest.mark.parametrize("kind", OF_VIEWS)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_views_in_lists_and_objects_are_copied(tmp_path: Path, name: str, kind: str) -> None:
    of, value = OF_VIEWS[kind]
    table = pa.table({"text": ["the"] * 3, "copy": pa.array([value, None, value], of)})
    pq.write_table(table, tmp_path / name) if name == "a.parquet" else stream(tmp_path / name, table)
    _, (rows,) = opened(tmp_path / name, keep=("copy",))
    assert rows.kept.take([2, 1])["copy"].to_pylist() == [value, None]
    assert "_view" not in str(rows.kept["copy"].type)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.large_string(), pa.string(), pa.large_string()),
        (pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float64())),
    ],
    ids=str,
)
def test_files_whose_types_have_one_in_common_are_one_data_set(
    tmp_path: Path, first: pa.DataType, second: pa.DataType, both: pa.DataType
) -> None:
    value = [[1.5]] if pa.types.is_list(both) else ["x"] if pa.types.is_large_string(both) else [1]
    for name, kind in (("a.parquet", first), ("b.parquet", second)):
        pq.write_table(pa.table({"text": ["the"], "copy": pa.array(value, kind)}), tmp_path / name)
    data, parts = opened(tmp_path, keep=("copy",))
    assert (data.schema.field("copy").type, kept(parts, "copy")) == (both, value * 2)


OF_INTEGERS = {
    "integer": (pa.int64(), pa.float64(), 2**53 + 1, 0.5),
    "small integer": (pa.int8(), pa.float64(), 1, 0.5),
    "decimal": (pa.decimal128(20, 2), pa.float64(), 1, 0.5),
    "list": (pa.list_(pa.int64()), pa.list_(pa.float64()), [2**53 + 1], [0.5]),
    "object": (pa.struct([("n", pa.int64())]), pa.struct([("n", pa.float64())]), {"n": 2**53 + 1}, {"n": 0.5}),
    "map": (pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.float64()), [("k", 2**53 + 1)], [("k", 0.5)]),
}


@pytest.mark.parametrize("kind", OF_INTEGERS)
@pytest.mark.parametrize("names", [("a.parquet", "b.parquet"), ("b.arrow", "a.arrow")], ids=str)
def test_whole_numbers_that_would_become_floats_are_refused(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    whole, floating, number, value = OF_INTEGERS[kind]
    for name, of, each in zip(names, (whole, floating), (number, value), strict=True):
        table = pa.table({"text": ["the"], "id": pa.array([each], of)})
        pq.write_table(table, tmp_path / name) if name.endswith("parquet") else stream(tmp_path / name, table)
    kinds = [re.escape(str(each).partition("<")[0]) for each in (whole, floating)]
    said = rf"`keep` has id, which is {kinds[0]}.* in {tmp_path / names[0]} and {kinds[1]}.* with the other files"
    with pytest.raises(ConfigError, match=said):
        open_input(str(tmp_path), JobOptions(keep=("id",)))
    assert texts(opened(tmp_path)[1]) == ["the", "the"]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")], ids=str)
def test_objects_with_different_keys_have_the_keys_of_all_files(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, row in zip(names, ({"n": 1}, {"m": "x", "n": 2}), strict=True):
        pq.write_table(pa.table({"text": ["the"], "meta": [row]}), tmp_path / f"{name}.parquet")
    rows = kept(opened(tmp_path, keep=("meta",))[1], "meta")
    expected = [{"n": 1, "m": None}, {"n": 2, "m": "x"}]
    assert rows == (expected if names[0] == "a" else expected[::-1])


def test_numbers_of_json_that_are_whole_in_one_file_only(tmp_path: Path) -> None:
    for name, number in (("a.jsonl", "1"), ("b.jsonl", "1.5")):
        (tmp_path / name).write_text(f'{{"text": "the", "score": {number}}}\n')
    assert kept(opened(tmp_path, keep=("score",))[1], "score") == [1.0, 1.5]
