"""What a vector database must do to take the output of a job, and the form that all of them get it in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec
import numpy as np
import pyarrow as pa

from bei_core.errors import BeiError, ConfigError
from bei_core.storage.backends import redact
from bei_core.storage.errors import TransientError, retry_transient
from bei_core.tasks import Rows

KEY, VECTOR = "key", "embedding"

_KEYS = UUID("6f3b1a52-6d0b-4d4c-9a55-0f6f5b1f8f0e")  # the namespace of the keys
_ROWS = 512  # of a request to a server, at most
_BYTES = 16 << 20  # of a request, about; Qdrant takes 32 MB at most by default, Milvus 64 MB
_NUMBER_BYTES = 22  # of a number of a vector in JSON


class Target(NamedTuple):
    """Where the rows go: a kind of database, its path or URL, and the table or collection."""

    kind: str
    location: str
    table: str

    def __str__(self) -> str:
        return f"{self.kind}:{redact(self.location)}#{self.table}"


class Sink:
    """A table of a vector database. A row that is written twice is there once, because its key is always the same."""

    def __init__(self, target: Target, schema: pa.Schema) -> None:
        """Opens the table; creates it if it does not exist. `schema` has the columns KEY and VECTOR."""
        self.target = target
        self.schema = schema

    @staticmethod
    def check(target: Target) -> None:
        """Raises ConfigError if it is known, before a row is computed, that nothing can be written there."""

    def refusals(self, kept: pa.Table) -> dict[int, str]:
        """Returns why the database cannot hold rows with these values of the copied columns, by their number."""
        return {}

    def write(self, table: pa.Table) -> None:
        """Writes the output of a part. When it returns, the database has it. If it does not answer, it is tried again.

        Raises TransientError if it does not answer then, BeiError for another failure.
        """
        rows = with_keys(table)

        def attempt() -> None:
            with translate_sink_errors(self.target, self.may_pass):
                self.upsert(rows)

        retry_transient(attempt, str(self.target))

    def upsert(self, rows: pa.Table) -> None:
        """Inserts rows, or replaces those with the same keys. It is called again after an error that may pass."""

    def may_pass(self, error: Exception) -> bool:
        """Whether another try may succeed after an error of the client, which does not try again by itself."""
        return isinstance(error, ConnectionError | TimeoutError)

    def close(self) -> None:
        """Closes the connection."""

    @staticmethod
    def commit(target: Target, parts: Iterable[pa.Table]) -> None:
        """Ends a job whose rows are all written. `parts` yields the vectors of all of them, in order."""

    @property
    def width(self) -> int:
        """The number of dimensions."""
        return int(self.schema.field(VECTOR).type.list_size)


def with_keys(table: pa.Table) -> pa.Table:
    """Returns the output of a part with float32 vectors and a key for each row: a UUID of its file, row and chunk."""
    names = [name for name in ("file", "row", "chunk") if name in table.column_names]
    keys = [str(uuid5(_KEYS, "\n".join(map(str, place)))) for place in zip(*_lists(table, names), strict=True)]
    at, width = table.column_names.index(VECTOR), table[VECTOR].type.list_size
    table = table.set_column(at, VECTOR, table[VECTOR].cast(pa.list_(pa.float32(), width)))
    return table.add_column(0, KEY, pa.array(keys, pa.string())).replace_schema_metadata(None)


def vectors_of(table: pa.Table) -> Rows:
    """Returns the vectors of a part, f32[N, D]."""
    width = table[VECTOR].type.list_size
    chunks = [np.empty((0, width), np.float32)]
    chunks += [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in table[VECTOR].chunks]
    return np.concatenate(chunks).astype(np.float32, copy=False)


class JsonSink(Sink):
    """A table whose rows are sent as objects of JSON's types; see `records_of`."""

    def refusals(self, kept: pa.Table) -> dict[int, str]:
        """See `Sink.refusals`."""
        reasons = ((row, self._reason_against(kept, row, values)) for row, values in enumerate(_rows_of(kept)))
        return {row: reason for row, reason in reasons if reason}

    def reason_against(self, values: dict[str, Any]) -> str:
        """Returns why the database cannot hold a row with these values of the copied columns; "" if it can."""
        return ""

    def _reason_against(self, kept: pa.Table, row: int, values: dict[str, Any] | None) -> str:
        if values is not None:
            return self.reason_against(values)
        return f"column {_not_utf8(kept.slice(row, 1))!r} is not UTF-8"


def create_once(create: Callable[[], object], exists: Callable[[], bool]) -> None:
    """Creates a table if it does not exist. Several workers may do so at a time; one creates it, the others fail."""
    if exists():
        return
    try:
        create()
    except Exception:
        if not exists():
            raise


def records_of(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows as objects of JSON's types, as many as a request may have."""
    num_bytes = len(table) * table[VECTOR].type.list_size * _NUMBER_BYTES + table.drop_columns([VECTOR]).nbytes
    if len(table) > _ROWS or (num_bytes > _BYTES and len(table) > 1):
        half = len(table) // 2
        yield from records_of(table.slice(0, half))
        yield from records_of(table.slice(half))
    elif len(table):
        yield msgspec.to_builtins(table.to_pylist())


def holds(value: object, test: Callable[[object], bool]) -> bool:
    """Whether a test is true of a value, or of a key or value within it."""
    if isinstance(value, Mapping):
        return any(holds(each, test) for each in value.items())
    if isinstance(value, list | tuple):
        return any(holds(each, test) for each in value)
    return test(value)


def _rows_of(kept: pa.Table) -> Iterator[dict[str, Any] | None]:
    """Yields the values of each row by column; None for a row with text that is not UTF-8."""
    try:
        yield from kept.to_pylist()
    except UnicodeDecodeError:
        for row in range(len(kept)):
            each = kept.slice(row, 1)
            yield None if _not_utf8(each) else each.to_pylist()[0]


def _not_utf8(row: pa.Table) -> str:
    """Returns the name of the first column with text that is not UTF-8; "" if there is none."""
    for name in row.column_names:
        try:
            row[name].to_pylist()
        except UnicodeDecodeError:
            return str(name)
    return ""


@contextmanager
def translate_sink_errors(target: Target, may_pass: Callable[[Exception], bool] = lambda _: False) -> Iterator[None]:
    """Raises BeiError, naming the database, for what its client raises in the block; TransientError if it may pass."""
    try:
        yield
    except BeiError:
        raise
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'bei-core[{target.kind}]'") from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        kind = TransientError if may_pass(error) else BeiError
        raise kind(f"{target} failed: {reason}; start the job again to go on") from error


def _lists(table: pa.Table, names: list[str]) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]
