"""Data files that store columns: Parquet and Arrow. Reading the parts in order reads each group of rows once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bei_core.jobs.datafile import DataFile, Rows, Split


class _Columns(DataFile):
    """A file that stores columns in groups of rows. Reading its parts in order reads each group once."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        self._position = -1  # the row that `_rest` begins with
        self._rest: Iterator[pa.RecordBatch] = iter(())

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
        return pa.schema([self.file_schema().field(column).remove_metadata() for column in columns])

    def splits(self, rows: int) -> Iterator[Split]:
        """See `DataFile.splits`."""
        total = sum(self.group_rows())
        for first in range(0, total, rows):
            yield Split(first, min(rows, total - first))

    def read(self, split: Split, texts: Sequence[str], kept: pa.Schema) -> Rows:
        """See `DataFile.read`."""
        columns = list(dict.fromkeys((*texts, *kept.names)))
        if split.first != self._position:
            self._seek(split.first, columns)
        found, count = list[pa.RecordBatch](), 0
        while count < split.num_rows:
            batch = next(self._rest)
            taken = batch.slice(0, split.num_rows - count)
            found.append(taken)
            count += len(taken)
            if len(taken) < len(batch):
                self._rest = _before(batch.slice(len(taken)), self._rest)
        self._position = split.first + split.num_rows
        table = pa.Table.from_batches(found)
        return Rows([table[name].to_pylist() for name in texts], table.select(kept.names).cast(kept))

    def _seek(self, row: int, columns: list[str]) -> None:
        starts = [0, *accumulate(self.group_rows())]
        group = max(index for index, start in enumerate(starts) if start <= row)
        self._rest = self.batches(group, columns)
        skip = row - starts[group]
        while skip:
            batch = next(self._rest)
            if len(batch) > skip:
                self._rest = _before(batch.slice(skip), self._rest)
            skip -= min(skip, len(batch))


def _before(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


class ParquetFile(_Columns):
    """Apache Parquet."""

    extensions = (".parquet", ".pq")

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        self._parquet = pq.ParquetFile(file)

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
    """Arrow's file format, also called Feather version 2."""

    extensions = (".arrow", ".feather", ".ipc")

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        self._arrow = pa.ipc.open_file(file)

    def file_schema(self) -> pa.Schema:
        """See `_Columns.file_schema`."""
        return self._arrow.schema

    def group_rows(self) -> Sequence[int]:
        """See `_Columns.group_rows`."""
        return [self._arrow.get_batch(index).num_rows for index in range(self._arrow.num_record_batches)]

    def batches(self, first_group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """See `_Columns.batches`."""
        groups = range(first_group, self._arrow.num_record_batches)
        return (self._arrow.get_batch(index).select(columns) for index in groups)
