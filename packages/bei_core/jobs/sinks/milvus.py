"""Milvus: a server, `milvus:http://HOST:19530`, with its token in MILVUS_TOKEN, or Milvus Lite, `milvus:PATH.db`."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pyarrow as pa
from pymilvus import MilvusClient

from bei_core.jobs.sinks.base import KEY, VECTOR, JsonSink, Target, create_once, records_of

_KEY_CHARACTERS = 36  # of a UUID
_MAX_KEPT_BYTES = 60_000  # Milvus takes 65,536 bytes of dynamic fields, among them `file`, `row` and those of chunks


class Milvus(JsonSink):
    """A collection of Milvus. The other columns of the output are dynamic fields."""

    def __init__(self, target: Target, schema: pa.Schema) -> None:
        super().__init__(target, schema)
        self._client = MilvusClient(uri=target.location, token=os.environ.get("MILVUS_TOKEN", ""))
        create_once(self._create, lambda: bool(self._client.has_collection(target.table)))

    def _create(self) -> None:
        self._client.create_collection(
            self.target.table,
            dimension=self.width,
            primary_field_name=KEY,
            id_type="string",
            max_length=_KEY_CHARACTERS,
            vector_field_name=VECTOR,
            metric_type="COSINE",
        )

    def reason_against(self, values: dict[str, Any]) -> str:
        """See `JsonSink.reason_against`."""
        num_bytes = len(msgspec.json.encode(values))
        if num_bytes <= _MAX_KEPT_BYTES:
            return ""
        return f"the kept columns have {num_bytes} bytes as JSON; with Milvus, {_MAX_KEPT_BYTES} at most"

    def upsert(self, rows: pa.Table) -> None:
        """See `Sink.upsert`."""
        for records in records_of(rows):
            self._client.upsert(self.target.table, records)

    def close(self) -> None:
        """See `Sink.close`."""
        self._client.close()
