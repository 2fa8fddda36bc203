"""The options of a bulk job: what it computes and writes, and its workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta
from msgspec.structs import fields

from bei_core.config.convert import convert
from bei_core.errors import ConfigError

Task: TypeAlias = Literal["auto", "embed", "sparse", "tokens", "classify", "rerank"]
OutputDtype: TypeAlias = Literal["float32", "float16", "int8", "bit"]

# Settings of a server's requests, connections and replies. A job has none of these; it honours all other settings.
_OF_SERVERS = """
served_model_name max_client_batch_size max_concurrent_requests max_queue_tokens max_queue_wait_s hang_timeout_s
payload_limit max_body_bytes_in_flight max_reply_bytes max_connections header_timeout_s body_timeout_s send_timeout_s
keep_alive_timeout_s drain_timeout_s tokenization_workers hostname port uds_path health_port api_key api_key_file
api_keys_file cors_allow_origin ui webserver_default_route access_log otlp_endpoint otlp_service_name disable_spans
prometheus_port
"""
SETTINGS_OF_SERVERS = frozenset(_OF_SERVERS.split())

_OF_EMBEDDINGS = {"output_dtype", "dimensions", "normalize"}  # options


def check_settings(given: Iterable[str]) -> None:
    """Raises ConfigError if one of the settings that were given for a job is a server's."""
    if names := sorted(SETTINGS_OF_SERVERS.intersection(given)):
        raise ConfigError(f"a job takes no settings of a server; leave out {', '.join(names)}")


def _check_types(options: msgspec.Struct) -> None:
    """Raises ConfigError for a value of another type, which msgspec does not check when a program makes the options."""
    for field in fields(options):
        convert(field.type, getattr(options, field.name), f"`{field.name}`")


class JobOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a job, besides the settings of the model."""

    column: Annotated[str, Meta(description="Column of the texts; of the documents, for a reranker.")] = "text"
    query_column: Annotated[str | None, Meta(description="Column of the queries, for a reranker.")] = None
    keep: Annotated[tuple[str, ...], Meta(description="Column to copy to the output, such as an id; repeatable.")] = ()
    job: Annotated[Task, Meta(description="What to compute; auto is what the model is for.")] = "auto"
    output_dtype: Annotated[
        OutputDtype, Meta(description="Type of the numbers of embeddings; bit packs eight signs into a byte.")
    ] = "float32"
    dimensions: Annotated[int | None, Meta(description="Keep only the first dimensions, for Matryoshka models.")] = None
    normalize: Annotated[bool, Meta(description="Scale embeddings to length 1.")] = True
    chunk: Annotated[bool, Meta(description="Split long texts; each chunk is a row with its start and end.")] = False
    chunk_tokens: Annotated[
        int | None, Meta(description="Most tokens of a chunk, special ones not counted; the model's limit if unset.")
    ] = None
    sink: Annotated[
        str | None,
        Meta(
            description="Vector database to write embeddings into too: lancedb:PATH, qdrant:URL, pgvector:URL, "
            "milvus:URL or faiss:FILE, with #TABLE at the end."
        ),
    ] = None
    rows_per_part: Annotated[
        int, Meta(description="Input rows of a part: a file of the output, and what is lost at most if killed.")
    ] = 8192

    def __post_init__(self) -> None:
        _check_types(self)
        if self.rows_per_part < 1:
            raise ConfigError("`rows_per_part` must be at least 1")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ConfigError("`chunk_tokens` must be at least 1")
        if self.chunk_tokens is not None and not self.chunk:
            raise ConfigError("`chunk_tokens` needs `chunk`")
        if self.dimensions is not None and self.dimensions < 1:
            raise ConfigError("`dimensions` must be at least 1")
        if len(set(self.keep)) < len(self.keep):
            raise ConfigError(f"`keep` has a column twice: {', '.join(self.keep)}")
        if self.job != "auto":
            self.check_for(self.job)

    def check_for(self, job: Task) -> None:
        """Raises ConfigError for options that a job does not have: those of embeddings, and the column of queries."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if job != "embed" and (names := [name for name in given if name in _OF_EMBEDDINGS]):
            raise ConfigError(f"the job {job} takes no {', '.join(names)}; leave out what is for embeddings")
        if (job == "rerank") != (self.query_column is not None):
            needs = "needs" if job == "rerank" else "takes no"
            raise ConfigError(f"the job {job} {needs} query_column")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the model reads: the texts, or the queries and the documents."""
        return (self.column,) if self.query_column is None else (self.query_column, self.column)


class RayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The workers of a job on a Ray cluster. Each holds one engine."""

    ray: Annotated[
        str, Meta(description="Run on Ray: the address of a cluster, auto for the one here, or local to start one.")
    ] = "auto"
    ray_workers: Annotated[int, Meta(description="Workers, each with an engine.")] = 1
    cpus_per_worker: Annotated[int, Meta(description="Processors that Ray reserves for a worker, and it uses.")] = 1
    gpus_per_worker: Annotated[float, Meta(description="GPUs that Ray reserves for a worker.")] = 0.0

    def __post_init__(self) -> None:
        _check_types(self)
        if self.ray_workers < 1 or self.cpus_per_worker < 1:
            raise ConfigError("`ray_workers` and `cpus_per_worker` must be at least 1")
        if not self.gpus_per_worker >= 0:
            raise ConfigError("`gpus_per_worker` must be at least 0")
        if not self.ray:
            raise ConfigError("`ray` must be the address of a cluster, auto or local")
