"""Vector databases that a job writes its embeddings into, besides its Parquet files. Each needs its own client.

A part is written here before its file is published, so the files of the output say which parts a database has. A part
that is computed again after a kill replaces its own rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib import import_module
from pathlib import Path

import pyarrow as pa

from bei_core.errors import ConfigError
from bei_core.jobs.options import JobOptions
from bei_core.jobs.sinks.base import KEY, VECTOR, Sink, Target, translate_sink_errors, with_keys

_CLASSES = {
    "lancedb": "LanceDb",
    "qdrant": "Qdrant",
    "faiss": "Faiss",
    "pgvector": "PgVector",
    "milvus": "Milvus",
}
_OF_FILES = {"lancedb", "qdrant", "faiss", "milvus"}  # their locations may be paths


def target_of(sink: str) -> Target:
    """Returns the parts of KIND:LOCATION#TABLE. Raises ConfigError for another form or an unknown kind."""
    kind, _, rest = sink.partition(":")
    location, _, table = rest.partition("#")
    if kind not in _CLASSES or not location:
        raise ConfigError(f"`sink` must be KIND:PATH or KIND:URL with a kind of {', '.join(_CLASSES)}, not {sink!r}")
    if kind == "faiss" and table:
        raise ConfigError(f"`sink` faiss writes one index into a file, and has no table; leave out #{table}")
    return Target(kind, location, table or "embeddings")


def absolute_sink(sink: str) -> str:
    """Returns KIND:PATH#TABLE with an absolute path, and any other text as it is."""
    kind, _, rest = sink.partition(":")
    path, mark, table = rest.partition("#")
    is_path = kind in _OF_FILES and path and "://" not in path and path != ":memory:"
    return f"{kind}:{Path(path).absolute()}{mark}{table}" if is_path else sink


def sink_of(options: JobOptions, columns: Collection[str]) -> Target | None:
    """Returns the vector database of a job, or None. Raises ConfigError if the output is not embeddings in floats."""
    if options.sink is None:
        return None
    if VECTOR not in columns or options.output_dtype not in {"float32", "float16"}:
        raise ConfigError("`sink` takes embeddings in float32 or float16")
    if KEY in options.keep:
        raise ConfigError(f"`keep` has {KEY}, which `sink` writes itself; rename the column")
    return target_of(options.sink)


def check_target(target: Target, *, several_processes: bool) -> None:
    """Raises ConfigError if the client of the database is not installed, or it cannot be written to.

    `several_processes` says whether several processes are to write at a time.
    """
    if several_processes and target.kind in {"qdrant", "milvus"} and "://" not in target.location:
        raise ConfigError(f"{target} is for one process; give the URL of a server for the workers of Ray")
    with translate_sink_errors(target):
        _class_of(target).check(target)


def open_sink(target: Target, empty: pa.Table) -> Sink:
    """Returns the open table for output with the columns of `empty`.

    Raises ConfigError if its client is not installed, BeiError if the database fails.
    """
    with translate_sink_errors(target):
        return _class_of(target)(target, with_keys(empty).schema)


def commit(target: Target, parts: Iterable[pa.Table]) -> None:
    """Ends a job whose rows are all written. `parts` yields the vectors of all of them, in order. Raises BeiError."""
    with translate_sink_errors(target):
        _class_of(target).commit(target, parts)


def _class_of(target: Target) -> type[Sink]:
    found: type[Sink] = getattr(import_module(f"bei_core.jobs.sinks.{target.kind}"), _CLASSES[target.kind])
    return found
