"""Files of lines: JSON lines, CSV and text, also compressed. One scan finds where the parts begin.

If a row cannot be read (a line that is not JSON, bytes that are not UTF-8), only this row is rejected. Rows are
numbered from 0 in each file.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import BinaryIO, ClassVar

import msgspec
import numpy as np
import pyarrow as pa

from bei_core.errors import ConfigError
from bei_core.jobs.datafile import DataFile, Rows, Split

_SCANNED_BYTES = 4 << 20  # per step of the search for line ends
_SAMPLE_ROWS = 1000  # from which the columns of JSON and their types are inferred
_MAX_ROW_BYTES = 64 << 20
# A line that ends a row with an error, also within quotation marks. It replaces a line of CSV that is too long. If that
# line begins a field in quotation marks that goes on in later lines, these are read as rows.
_NOT_CSV = b'"x"x\n'


class Lines(DataFile):
    """A file of lines, plain or compressed."""

    def header_bytes(self) -> int:
        """Returns the index of the byte at which the first row begins: after a byte order mark, if there is one.

        Raises ConfigError if it is the mark of UTF-16.
        """
        self.file.seek(0)
        begin = self.file.read(len(codecs.BOM_UTF8))
        if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{self.name} is in UTF-16; convert it to UTF-8")
        return len(codecs.BOM_UTF8) if begin == codecs.BOM_UTF8 else 0

    def splits(self, rows: int) -> Iterator[Split]:
        """See `DataFile.splits`. Reads the whole file once."""
        first = number = 0
        begin = end = self.header_bytes()
        for row_end in self.row_ends(begin):
            is_long = row_end - end > _MAX_ROW_BYTES  # a split of its own, which `read` rejects
            if is_long and end > begin:
                yield Split(first, number - first, begin, end)
                first, begin = number, end
            number, end = number + 1, row_end
            if is_long or number - first == rows:
                yield Split(first, number - first, begin, end)
                first, begin = number, end
        if end > begin:
            yield Split(first, number - first, begin, end)

    def row_ends(self, position: int) -> Iterator[int]:
        """Yields the index of the byte after each row from `position` on, in a file of any size."""
        self.file.seek(position)
        end = position
        while block := self.file.read(_SCANNED_BYTES):
            for offset in np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")).tolist():
                end = position + offset + 1
                yield end
            position += len(block)
        if position > end:  # the last line may lack a line end
            yield position

    def read(self, split: Split, texts: Sequence[str], kept: pa.Schema) -> Rows:
        """See `DataFile.read`. A row that is too long is not read."""
        errors = dict[int, str]()
        records = list[Mapping[str, object]]()
        for index, record in enumerate(self._rows(split)):
            if isinstance(record, str):
                errors[index] = record
            records.append({} if isinstance(record, str) else record)
        arrays = [_array(records, column, errors) for column in kept]
        found = [[record.get(name) for record in records] for name in texts]
        return Rows(found, pa.Table.from_arrays(arrays, schema=kept), errors)

    def _rows(self, split: Split) -> Iterator[Mapping[str, object] | str]:
        size = split.end - split.begin
        if split.num_rows == 1 and size > _MAX_ROW_BYTES:
            return iter([f"the row has {size} bytes; at most {_MAX_ROW_BYTES} are read"])
        self.file.seek(split.begin)
        return self.records(self.file.read(size))

    def records(self, content: bytes) -> Iterator[Mapping[str, object] | str]:
        """Yields the rows in `content`, which has whole lines: values by column, or why a row cannot be read."""
        raise NotImplementedError


def _array(records: Sequence[Mapping[str, object]], column: pa.Field, errors: dict[int, str]) -> pa.Array:
    """Returns the values of a column. A value of another type becomes null, with the reason in `errors`."""
    values = [record.get(column.name) for record in records]
    if pa.types.is_nested(column.type):
        for index, value in enumerate(values):
            key = _unknown_key(value, column.type)
            if key is not None:
                errors.setdefault(
                    index, f"column {column.name!r} has the key {key!r}, which the first rows do not have"
                )
                values[index] = None
    try:
        return pa.array(values, column.type)
    except (pa.ArrowException, OverflowError):
        for index, value in enumerate(values):
            try:
                pa.scalar(value, column.type)
            except (pa.ArrowException, OverflowError):
                errors.setdefault(index, f"column {column.name!r} is not of the type {column.type}")
                values[index] = None
        return pa.array(values, column.type)


def _unknown_key(value: object, kind: pa.DataType) -> str | None:
    """Returns a key of an object that its type does not have, so that it would be lost; None if there is none."""
    found: Iterator[str | None] = iter(())
    if isinstance(value, dict) and pa.types.is_struct(kind):
        names = {field.name: field.type for field in kind}
        found = (_unknown_key(item, names[key]) if key in names else key for key, item in value.items())
    elif isinstance(value, list) and pa.types.is_list(kind):
        found = (_unknown_key(item, kind.value_type) for item in value)
    return next((key for key in found if key is not None), None)


class TextFile(Lines):
    """One text per line."""

    extensions = (".txt", ".text")

    def columns(self) -> Sequence[str]:
        """See `DataFile.columns`."""
        return ["text"]

    def records(self, content: bytes) -> Iterator[Mapping[str, object] | str]:
        """See `Lines.records`."""
        for line in content.removesuffix(b"\n").split(b"\n"):
            try:
                yield {"text": line.removesuffix(b"\r").decode()}
            except UnicodeDecodeError as error:
                yield f"not UTF-8: {error.reason} at byte {error.start} of the line"


class JsonLinesFile(Lines):
    """One JSON object per line."""

    extensions = (".jsonl", ".ndjson", ".json")

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        file.seek(self.header_bytes())
        lines = (file.readline(_MAX_ROW_BYTES) for _ in range(_SAMPLE_ROWS))
        first, records = b"", list[Mapping[str, object] | str]()
        for line in takewhile(bool, lines):
            first = first or line.strip()
            records.append(_json_object(line))
        if first.startswith(b"[") and (first[-1:] != b"]" or len(records) == 1):
            raise ConfigError(f"{name} is a JSON array; write one object a line (jq -c '.[]')")
        self._sample = [record for record in records if not isinstance(record, str)]

    def columns(self) -> Sequence[str]:
        """See `DataFile.columns`. The names are those of the first lines."""
        names = list(dict.fromkeys(name for record in self._sample for name in record))
        if not names:
            raise ConfigError(f"{self.name}: the first lines are no JSON objects; one object a line is needed")
        return names

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """See `DataFile.schema`. The types are those of the first lines."""
        try:
            return pa.schema([(name, pa.array([each.get(name) for each in self._sample]).type) for name in columns])
        except (pa.ArrowException, OverflowError) as error:
            raise ConfigError(
                f"{self.name}: columns {', '.join(columns)} have values of several types or numbers of over 64 bits"
            ) from error

    def type_instead_of_text(self, column: str) -> str | None:
        """See `DataFile.type_instead_of_text`."""
        kinds = {type(record.get(column)) for record in self._sample} - {type(None)}
        return None if str in kinds or not kinds else " and ".join(sorted(kind.__name__ for kind in kinds))

    def records(self, content: bytes) -> Iterator[Mapping[str, object] | str]:
        """See `Lines.records`."""
        return map(_json_object, content.removesuffix(b"\n").split(b"\n"))


def _json_object(line: bytes) -> Mapping[str, object] | str:
    """Returns the object in a line, or the reason why there is none (a str)."""
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"not JSON: {error}" if line.strip() else "an empty line"
    return found if isinstance(found, dict) else "not a JSON object"


class CsvFile(Lines):
    """Values separated by commas, with a header (RFC 4180)."""

    extensions: ClassVar[tuple[str, ...]] = (".csv",)
    delimiter: ClassVar[str] = ","

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name, file)
        csv.field_size_limit(_MAX_ROW_BYTES)
        file.seek(super().header_bytes())
        header = next(self._parsed(iter(file.readline, b"")), [])
        if isinstance(header, str):
            raise ConfigError(f"{name}: the header is {header}")
        if any(map(_is_escaped, header)):
            raise ConfigError(f"{name}: the header is not UTF-8; convert the file to UTF-8")
        self._names = header

    def header_bytes(self) -> int:
        """See `Lines.header_bytes`."""
        return next(self.row_ends(super().header_bytes()), 0)

    def row_ends(self, position: int) -> Iterator[int]:
        """See `Lines.row_ends`. A line end between quotation marks does not end the row."""
        self.file.seek(position)
        end = position

        def lines() -> Iterator[bytes]:
            nonlocal end
            while line := self.file.readline(_MAX_ROW_BYTES):
                end += len(line)
                if len(line) == _MAX_ROW_BYTES and not line.endswith(b"\n"):
                    end += self._skip_line()
                    line = _NOT_CSV
                yield line

        for _ in self._parsed(lines()):
            yield end

    def _skip_line(self) -> int:
        """Reads to the end of a line; returns the number of bytes."""
        size = 0
        while part := self.file.readline(_MAX_ROW_BYTES):
            size += len(part)
            if part.endswith(b"\n"):
                break
        return size

    def columns(self) -> Sequence[str]:
        """See `DataFile.columns`."""
        return self._names

    def records(self, content: bytes) -> Iterator[Mapping[str, object] | str]:
        """See `Lines.records`."""
        for values in self._parsed(io.BytesIO(content)):
            if isinstance(values, str):
                yield values
            elif len(values) != len(self._names):
                yield f"{len(values)} values where the header has {len(self._names)}" if values else "an empty line"
            elif any(not value.isascii() and _is_escaped(value) for value in values):
                yield "not UTF-8"
            else:
                yield dict(zip(self._names, values, strict=True))

    def _parsed(self, lines: Iterable[bytes]) -> Iterator[list[str] | str]:
        """Yields the values of each row, or the reason why it is not CSV (a str)."""
        rows = csv.reader(
            (line.decode("utf-8", "surrogateescape") for line in lines), delimiter=self.delimiter, strict=True
        )
        while True:
            try:
                yield next(rows)
            except csv.Error as error:
                yield f"not CSV: {error}"
            except StopIteration:
                return


class TsvFile(CsvFile):
    """Values separated by tabs, with a header."""

    extensions = (".tsv", ".tab")
    delimiter = "\t"


def _is_escaped(value: str) -> bool:
    """Whether a decoded text has surrogate escapes, which stand for bytes that are not UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in value)
