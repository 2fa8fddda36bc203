"""PostgreSQL with pgvector: `pgvector:postgresql://USER@HOST/DATABASE`, with its password in PGPASSWORD."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from bei_core.jobs.sinks.base import KEY, VECTOR, JsonSink, Target, holds, records_of

_CREATING = 0x6265695F6A6F6273  # the number of the lock, "bei_jobs"

# SQLSTATEs: classes of a lost connection, of transactions that a server ends, of too few resources, and of an operator
# who stops the server. A full disk is in the third, and does not pass.
_CONNECTION, _PASSING, _DISK_FULL = "08", ("08", "40", "53", "57P"), "53100"

_TYPES = (
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_uint64, "numeric"),
    (pa.types.is_integer, "bigint"),
    (pa.types.is_floating, "double precision"),
    (pa.types.is_timestamp, "timestamptz"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_dictionary, "text"),
)


class PgVector(JsonSink):
    """A table of PostgreSQL, with the columns of the output; those of nested and rare types are JSON."""

    def __init__(self, target: Target, schema: pa.Schema) -> None:
        super().__init__(target, schema)
        self._types = {field.name: _type_of(field.type) for field in schema}
        self._types |= {KEY: "uuid PRIMARY KEY", VECTOR: f"vector({self.width})"}
        self._connection = self._connect()
        names = {name: sql.Identifier(name) for name in self._types}
        columns = [sql.SQL("{} " + kind).format(names[name]) for name, kind in self._types.items()]  # type: ignore[arg-type,unused-ignore]
        with self._connection.transaction():
            # IF NOT EXISTS fails if another worker creates the same at this time, so they do it one after the other.
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", [_CREATING])
            self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._connection.execute(
                sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(
                    sql.Identifier(target.table), sql.SQL(", ").join(columns)
                )
            )
        self._insert = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {}").format(
            sql.Identifier(target.table),
            sql.SQL(", ").join(names.values()),
            sql.SQL(", ").join(sql.Placeholder() * len(names)),
            names[KEY],
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in names.values()),
        )

    def reason_against(self, values: dict[str, Any]) -> str:
        """See `JsonSink.reason_against`."""
        for name, value in values.items():
            if self._types[name] in {"text", "jsonb"} and holds(value, _is_with_nul):
                return f"column {name!r} has a NUL character, which PostgreSQL cannot hold"
            if self._types[name] == "jsonb" and holds(value, _is_not_finite):
                return f"column {name!r} has NaN or infinity, which jsonb cannot hold"
        return ""

    def upsert(self, rows: pa.Table) -> None:
        """See `Sink.upsert`. A part is one transaction."""
        if self._connection.closed:  # by the server, or the network has failed
            self._connection = self._connect()
        with self._connection.transaction(), self._connection.cursor() as cursor:
            for records in records_of(rows):
                cursor.executemany(self._insert, [self._values(record) for record in records])

    def may_pass(self, error: Exception) -> bool:
        """See `Sink.may_pass`. The connection is lost or refused, or the server ends transactions, as in a deadlock."""
        if not isinstance(error, psycopg.OperationalError):
            return False
        state = error.sqlstate or _CONNECTION  # None if the server did not answer
        return state.startswith(_PASSING) and state != _DISK_FULL

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.target.location)

    def close(self) -> None:
        """See `Sink.close`."""
        self._connection.close()

    def _values(self, record: dict[str, object]) -> list[object]:
        return [self._value(name, value) for name, value in record.items()]

    def _value(self, name: str, value: object) -> object:
        if name == VECTOR:
            return msgspec.json.encode(value).decode()
        return Jsonb(value) if self._types[name] == "jsonb" and value is not None else value


def _is_with_nul(value: object) -> bool:
    return isinstance(value, str) and "\0" in value


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _type_of(kind: pa.DataType) -> str:
    return next((name for is_kind, name in _TYPES if is_kind(kind)), "jsonb")
