"""Data files that store columns: Parquet and Arrow. Reading the parts in order reads each group of rows once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bei_core.jobs.datafile import DataFile, Rows, Split

_READ_BYTES = 1 << 20  # of a compressed column: by default, all groups of rows that are still to come would be read

# Types that pyarrow can read but not select rows of, and those that they are copied as. Polars writes them.
_VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}

_TEXT_TYPES = {"string", "large_string", "string_view", "null"}


class _Columns(DataFile):
    """A file that stores columns in groups of rows. Reading its parts in order reads each group once."""

    has_types = True

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        self._position = -1  # the row that is read next
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._left: pa.RecordBatch | None = None  # the rows of the last batch that were not taken

    def file_schema(self) -> pa.Schema:
        """Returns the names and types of all columns."""
        raise NotImplementedError

    def group_rows(self) -> Sequence[int]:
        """The number of rows of each group."""
        raise NotImplementedError

    def batches(self, first_group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows from the start of a group to the end of the file, in batches of any size."""
        raise NotImplementedError

    def columns(self) -> Sequence[str]:
        """See `DataFile.columns`."""
        return list(self.file_schema().names)

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """See `DataFile.schema`."""
        fields = [self.file_schema().field(column).remove_metadata() for column in columns]
        return pa.schema([each.with_type(_copied_as(each.type)) for each in fields])

    def type_instead_of_text(self, column: str) -> str | None:
        """See `DataFile.type_instead_of_text`."""
        kind = self.file_schema().field(column).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        return None if str(values) in _TEXT_TYPES else str(kind)

    def splits(self, rows: int) -> Iterator[Split]:
        """See `DataFile.splits`."""
        total = self._starts[-1]
        for first in range(0, total, rows):
            yield Split(first, min(rows, total - first))

    def read(self, split: Split, texts: Sequence[str], kept: pa.Schema) -> Rows:
        """See `DataFile.read`."""
        columns = list(dict.fromkeys((*texts, *kept.names)))
        if split.first != self._position:
            self._seek(split.first, columns)
        found, missing = list[pa.RecordBatch](), split.num_rows
        while missing:
            found.append(self._take(missing))
            missing -= len(found[-1])
        self._position = split.first + split.num_rows
        table, errors = pa.Table.from_batches(found), dict[int, str]()
        return Rows([_values(table[name], errors) for name in texts], table.select(kept.names).cast(kept), errors)

    @cached_property
    def _starts(self) -> Sequence[int]:
        """The number of the first row of each group, and the number of all rows."""
        return [0, *accumulate(self.group_rows())]

    def _seek(self, row: int, columns: list[str]) -> None:
        group = max(index for index, start in enumerate(self._starts) if start <= row)
        self._batches, self._left = self.batches(group, columns), None
        skip = row - self._starts[group]
        while skip:
            skip -= len(self._take(skip))

    def _take(self, limit: int) -> pa.RecordBatch:
        """Returns the next rows of the file, at most `limit`."""
        batch = next(self._batches) if self._left is None else self._left
        self._left = batch.slice(limit) if len(batch) > limit else None
        return batch.slice(0, limit)


def _copied_as(kind: pa.DataType) -> pa.DataType:
    """Returns the type that a column is copied as: the same, but without views, also within lists and objects."""
    if not any(view in str(kind) for view in _VIEWS):
        return kind
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_copied_as(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_copied_as(kind.key_type), _copied_as(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = kind.value_field.with_type(_copied_as(kind.value_type))
        return pa.large_list(item) if pa.types.is_large_list(kind) else pa.list_(item, getattr(kind, "list_size", -1))
    return _VIEWS.get(str(kind), kind)


def _values(column: pa.ChunkedArray, errors: dict[int, str]) -> list[object]:
    """Returns the values of a column. A value that Python cannot hold becomes None, with the reason in `errors`."""
    try:
        found: list[object] = column.to_pylist()
    except ValueError:  # such as bytes that are not UTF-8 in a column of texts
        found = [_value(scalar, index, errors) for index, scalar in enumerate(column)]
    return found


def _value(scalar: pa.Scalar, index: int, errors: dict[int, str]) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        errors[index] = f"not UTF-8: {error.reason} at byte {error.start} of the text"
    except ValueError:
        errors[index] = f"not a text but a value of type {scalar.type}"
    return None


class ParquetFile(_Columns):
    """Apache Parquet."""

    extensions = (".parquet", ".pq")

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        self._parquet = pq.ParquetFile(file, buffer_size=_READ_BYTES, pre_buffer=False)

    def file_schema(self) -> pa.Schema:
        """See `_Columns.file_schema`."""
        return self._parquet.schema_arrow

    def group_rows(self) -> Sequence[int]:
        """See `_Columns.group_rows`."""
        metadata = self._parquet.metadata
        return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]

    def batches(self, first_group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """See `_Columns.batches`."""
        groups = range(first_group, self._parquet.metadata.num_row_groups)
        return iter(self._parquet.iter_batches(8192, row_groups=list(groups), columns=columns, use_threads=False))


class ArrowFile(_Columns):
    """Arrow's file format, also called Feather version 2, or its stream format, which Hugging Face's datasets have."""

    extensions = (".arrow", ".feather", ".ipc")

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        try:
            self._arrow = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            self._arrow = None
        self._schema: pa.Schema = (self._arrow or self._stream()).schema

    def file_schema(self) -> pa.Schema:
        """See `_Columns.file_schema`."""
        return self._schema

    def group_rows(self) -> Sequence[int]:
        """See `_Columns.group_rows`. Reads the whole file once."""
        return [batch.num_rows for batch in self._from(0)]

    def batches(self, first_group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """See `_Columns.batches`."""
        return (batch.select(columns) for batch in self._from(first_group))

    def _from(self, first_group: int) -> Iterator[pa.RecordBatch]:
        if self._arrow is None:
            return islice(self._stream(), first_group, None)
        return map(self._arrow.get_batch, range(first_group, self._arrow.num_record_batches))

    def _stream(self) -> pa.RecordBatchReader:
        self.file.seek(0)
        return pa.ipc.open_stream(self.file)
