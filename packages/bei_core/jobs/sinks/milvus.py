"""Milvus: a server, `milvus:http://HOST:19530`, with its token in MILVUS_TOKEN, or Milvus Lite, `milvus:PATH.db`."""

from __future__ import annotations

import os

import pyarrow as pa
from pymilvus import MilvusClient

from bei_core.jobs.sinks.base import KEY, VECTOR, Sink, Target, records_of

_KEY_CHARACTERS = 36  # of a UUID


class Milvus(Sink):
    """A collection of Milvus. The other columns of the output are dynamic fields."""

    def __init__(self, target: Target, schema: pa.Schema) -> None:
        super().__init__(target, schema)
        self._client = MilvusClient(uri=target.location, token=os.environ.get("MILVUS_TOKEN", ""))
        if not self._client.has_collection(target.table):
            self._client.create_collection(
                target.table,
                dimension=self.width,
                primary_field_name=KEY,
                id_type="string",
                max_length=_KEY_CHARACTERS,
                vector_field_name=VECTOR,
                metric_type="COSINE",
            )

    def upsert(self, rows: pa.Table) -> None:
        """See `Sink.upsert`."""
        for records in records_of(rows):
            self._client.upsert(self.target.table, records)

    def close(self) -> None:
        """See `Sink.close`."""
        self._client.close()
