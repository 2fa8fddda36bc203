"""LanceDB: a folder or a bucket, `lancedb:PATH`."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

import lancedb
import pyarrow as pa

from bei_core.errors import BeiError
from bei_core.jobs.sinks.base import KEY, Sink, Target


class LanceDb(Sink):
    """A table of LanceDB, with the columns of the output."""

    def __init__(self, target: Target, schema: pa.Schema) -> None:
        super().__init__(target, schema)
        if _is_path(target) and not Path(target.location).is_dir():  # it was there in the process that began the job
            raise BeiError(
                f"{target} is not on this node ({socket.gethostname()}), which does not share the folder with the node "
                "that began the job; give a shared folder or an object store"
            )
        self._table = lancedb.connect(target.location).create_table(target.table, schema=schema, exist_ok=True)

    @staticmethod
    def check(target: Target) -> None:
        """See `Sink.check`. Creates the folder, so that workers can tell whether they share it."""
        if _is_path(target):
            Path(target.location).mkdir(parents=True, exist_ok=True)

    def upsert(self, rows: pa.Table) -> None:
        """See `Sink.upsert`."""
        self._table.merge_insert(KEY).when_matched_update_all().when_not_matched_insert_all().execute(rows)

    @staticmethod
    def commit(target: Target, parts: Iterable[pa.Table]) -> None:
        """Merges the small files of the table that the parts have made."""
        lancedb.connect(target.location).open_table(target.table).optimize()


def _is_path(target: Target) -> bool:
    return "://" not in target.location
