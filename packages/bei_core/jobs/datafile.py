"""One file of a data set: where its parts are, and the rows of a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, ClassVar, NamedTuple

import pyarrow as pa


class Split(NamedTuple):
    """Rows [first, first + num_rows) of a file. Formats of lines find them in its bytes [begin, end)."""

    first: int
    num_rows: int
    begin: int = 0
    end: int = 0


@dataclass(slots=True)
class Rows:
    """The rows of one part."""

    texts: list[list[object]]  # one list per text column; only values that are `str` are texts
    kept: pa.Table  # the columns to copy to the output
    errors: dict[int, str] = field(default_factory=dict)  # by the row's number in the part: why it could not be read


class DataFile:
    """One open file of a data set. Subclasses are the formats."""

    extensions: ClassVar[tuple[str, ...]]

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self.file = file

    def columns(self) -> Sequence[str]:
        """The names of the columns. Raises ConfigError if the file has none."""
        raise NotImplementedError

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """The types of some of the columns; text, unless the format has types."""
        return pa.schema([(column, pa.string()) for column in columns])

    def splits(self, rows: int) -> Iterator[Split]:
        """Where each run of `rows` rows is."""
        raise NotImplementedError

    def read(self, split: Split, texts: Sequence[str], kept: pa.Schema) -> Rows:
        """The rows of a split: its text columns, and the columns of `kept` in its types."""
        raise NotImplementedError
