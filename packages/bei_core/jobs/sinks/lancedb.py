"""LanceDB: a folder or a bucket, `lancedb:PATH`."""

from __future__ import annotations

from collections.abc import Iterable

import lancedb
import pyarrow as pa

from bei_core.jobs.sinks.base import KEY, Sink, Target


class LanceDb(Sink):
    """A table of LanceDB, with the columns of the output."""

    def __init__(self, target: Target, schema: pa.Schema) -> None:
        super().__init__(target, schema)
        self._table = lancedb.connect(target.location).create_table(target.table, schema=schema, exist_ok=True)

    def upsert(self, rows: pa.Table) -> None:
        """See `Sink.upsert`."""
        self._table.merge_insert(KEY).when_matched_update_all().when_not_matched_insert_all().execute(rows)

    @staticmethod
    def commit(target: Target, parts: Iterable[pa.Table]) -> None:
        """Merges the small files of the table that the parts have made."""
        lancedb.connect(target.location).open_table(target.table).optimize()
