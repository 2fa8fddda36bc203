"""FAISS: a file with an index, `faiss:PATH`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import faiss
import pyarrow as pa

from bei_core.errors import ConfigError
from bei_core.jobs.sinks.base import Sink, Target, vectors_of
from bei_core.storage.cache import write_atomically


class Faiss(Sink):
    """An exact index by inner product. The id of a vector is the number of its row in all parts of the output.

    A FAISS index is one file, so it is built from the parts when the job ends, and replaces the file at once.
    """

    @staticmethod
    def check(target: Target) -> None:
        """See `Sink.check`. The file is written at the end, so its folder must exist now."""
        path = Path(target.location)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError(
                f"{target.location} cannot be written; `sink` faiss:FILE needs a file in a folder that exists"
            )

    @staticmethod
    def commit(target: Target, parts: Iterable[pa.Table]) -> None:
        """Builds the index and writes it. It needs the memory of all vectors."""
        index = None
        for part in parts:
            vectors = vectors_of(part)
            if index is None:
                index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
        if index is not None:
            write_atomically(Path(target.location), memoryview(faiss.serialize_index(index)), durable=True)
