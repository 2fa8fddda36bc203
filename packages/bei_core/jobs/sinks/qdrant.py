"""Qdrant: a server, `qdrant:http://HOST:6333`, with its key in QDRANT_API_KEY, or a folder, `qdrant:PATH`."""

from __future__ import annotations

import os

import pyarrow as pa
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from bei_core.jobs.sinks.base import KEY, VECTOR, JsonSink, Target, create_once, records_of


class Qdrant(JsonSink):
    """A collection of Qdrant. The columns of the output, without the vectors, are the payload."""

    def __init__(self, target: Target, schema: pa.Schema) -> None:
        super().__init__(target, schema)
        is_server = "://" in target.location
        place = {"url": target.location, "api_key": os.environ.get("QDRANT_API_KEY")} if is_server else {}
        self._client = QdrantClient(**(place or {"path": target.location}))
        vectors = models.VectorParams(size=self.width, distance=models.Distance.COSINE)
        create_once(
            lambda: self._client.create_collection(target.table, vectors_config=vectors),
            lambda: self._client.collection_exists(target.table),
        )

    def upsert(self, rows: pa.Table) -> None:
        """See `Sink.upsert`."""
        for records in records_of(rows):
            points = [models.PointStruct(id=each.pop(KEY), vector=each.pop(VECTOR), payload=each) for each in records]
            self._client.upsert(self.target.table, points, wait=True)

    def may_pass(self, error: Exception) -> bool:
        """See `Sink.may_pass`. There was no answer, or the server or its proxy is busy."""
        if isinstance(error, UnexpectedResponse):
            return error.status_code in {429, 500, 502, 503, 504}
        # The second is for 429 with `Retry-After`; the first versions of the client do not have it.
        return isinstance(error, ResponseHandlingException) or type(error).__name__ == "ResourceExhaustedResponse"

    def close(self) -> None:
        """See `Sink.close`."""
        self._client.close()
