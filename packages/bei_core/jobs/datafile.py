"""The interface to one file of a data set: it finds the file's parts and reads the rows of a part."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, ClassVar, NamedTuple

import pyarrow as pa

from bei_core.errors import CheckpointError


class Split(NamedTuple):
    """Rows [first, first + num_rows) of a file. In formats of lines, they are the bytes [begin, end)."""

    first: int
    num_rows: int
    begin: int = 0
    end: int = 0


@dataclass(slots=True)
class Rows:
    """The rows of one part."""

    texts: list[list[object]]  # one list per text column; only values that are `str` are texts
    kept: pa.Table  # the columns to copy to the output
    errors: dict[int, str] = field(default_factory=dict)  # why a row could not be read, by its number in the part


class DataFile:
    """One open file of a data set. Subclasses are the formats."""

    extensions: ClassVar[tuple[str, ...]]
    has_types: ClassVar[bool] = False  # whether the file says the types of its columns

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self.file = file

    def is_empty(self) -> bool:
        """Whether the file has no bytes, as some of the files that Spark writes."""
        self.file.seek(0)
        return not self.file.read(1)

    def columns(self) -> Sequence[str]:
        """The names of the columns. Raises ConfigError if the file has none."""
        raise NotImplementedError

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """Returns the types of some of the columns; text, unless the format has types."""
        return pa.schema([(column, pa.string()) for column in columns])

    def type_instead_of_text(self, column: str) -> str | None:
        """Returns the type of a column that cannot have texts; None if it can. Types are known or sampled."""
        return None

    def splits(self, rows: int) -> Iterator[Split]:
        """Yields the splits of the file in order, each of `rows` rows except the last."""
        raise NotImplementedError

    def read(self, split: Split, texts: Sequence[str], kept: pa.Schema) -> Rows:
        """Returns the rows of a split: the columns `texts`, and the columns of `kept` with the types of `kept`."""
        raise NotImplementedError


@contextmanager
def translate_read_errors(name: str) -> Iterator[None]:
    """Raises CheckpointError, naming the file, for what libraries raise in the block if a file is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise CheckpointError(f"{name} cannot be read: {str(error).partition(chr(10))[0]}") from error
