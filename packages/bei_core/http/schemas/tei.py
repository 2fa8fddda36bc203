"""The API of text-embeddings-inference: `/embed` and its variants, `/similarity`, `/info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from bei_core.errors import EmptyInputError, ValidationError, WrongTaskError
from bei_core.http.json_schema import INTEGER, NUMBER, OBJECT, STRING, any_of, array_of, map_of, nullable, object_of
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import Common, Input, Named, PipelineParameters, RequestContext, inputs_of
from bei_core.http.version import bei_version
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result, Service
from bei_core.tasks import (
    Embed,
    EmbedAll,
    EmbedSparse,
    Rows,
    Several,
    Similarity,
    Sparse,
    Task,
    Text,
    TokenRows,
    check_dimensions,
)


class EmbedRequest(Common):
    """`POST /embed`."""

    kinds = (Kind.EMBEDDING,)

    inputs: Input
    normalize: bool = True
    dimensions: int | None = None
    encoding_format: Literal["float"] | None = None  # huggingface_hub sends it
    parameters: PipelineParameters | None = None  # Hugging Face's clients put the other options beside `inputs`

    def to_task(self, model: ServedModel) -> Embed:
        """Returns the task. Raises ValidationError for options that contradict each other."""
        inputs, options = inputs_of(self.inputs), self.encode_options(model)
        if self.parameters is not None:
            options = self.parameters.applied(self, options)
        if self.dimensions is not None:
            check_dimensions(self.dimensions, model.row_width)  # before any work
        return Embed(inputs, options, self.normalize, self.dimensions)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> Rows:
        """Returns the vectors, f32[N, D]."""
        return np.ascontiguousarray(result.rows)


class EmbedAllRequest(Common):
    """`POST /embed_all`."""

    kinds = (Kind.EMBEDDING, Kind.LATE_INTERACTION)

    inputs: Input
    # Of bge-m3 (FlagEmbedding's `M3Embedder.encode`): any of these asks for its reply, in place of the token vectors.
    return_dense: bool | None = None
    return_sparse: bool | None = None
    return_colbert_vecs: bool | None = None

    def to_task(self, model: ServedModel) -> EmbedAll | Several:
        """Returns the task."""
        inputs, options = inputs_of(self.inputs), self.encode_options(model)
        if not self._is_several:
            return model.embed_all(inputs, options)
        if model.bge_m3 is None:
            raise WrongTaskError(
                f"`return_dense`, `return_sparse` and `return_colbert_vecs` are for bge-m3, which has a head for each; "
                f"{model.name} has not"
            )
        tasks: tuple[Task[Any], ...] = (
            Embed(inputs, options),
            model.embed_sparse(inputs, options),
            model.embed_all(inputs, options),
        )
        asked = [task for task, is_asked in zip(tasks, self._asked, strict=True) if is_asked]
        if not asked:
            raise ValidationError(
                "at least one of `return_dense`, `return_sparse` and `return_colbert_vecs` must be true"
            )
        return Several(asked)

    @property
    def _is_several(self) -> bool:
        """Whether the reply is to be that of FlagEmbedding's `encode`."""
        return {self.return_dense, self.return_sparse, self.return_colbert_vecs} != {None}

    @property
    def _asked(self) -> tuple[bool, bool, bool]:
        """Whether dense, sparse and ColBERT vectors are asked for, by FlagEmbedding's defaults."""
        return self.return_dense is not False, bool(self.return_sparse), bool(self.return_colbert_vecs)

    def to_reply(self, result: Result[list[Any]], context: RequestContext) -> list[TokenRows] | dict[str, Any]:
        """Returns the token vectors of each text, N arrays f32[n, E]; or what FlagEmbedding's `encode` returns."""
        if not self._is_several:
            return [np.ascontiguousarray(rows) for rows in result.rows]
        found = iter(result.rows)
        dense, sparse, colbert = (next(found) if is_asked else None for is_asked in self._asked)
        return {
            "dense_vecs": dense,
            "lexical_weights": sparse and [_by_id(terms) for terms in sparse],
            "colbert_vecs": colbert and [np.ascontiguousarray(rows) for rows in colbert],
        }


class EmbedSparseRequest(Common):
    """`POST /embed_sparse`."""

    kinds = (Kind.SPARSE,)

    inputs: Input

    def to_task(self, model: ServedModel) -> EmbedSparse:
        """Returns the task."""
        return model.embed_sparse(inputs_of(self.inputs), self.encode_options(model))

    def to_reply(self, result: Result[list[Sparse]], context: RequestContext) -> list[list[dict[str, Any]]]:
        """Returns `[[{index, value}]]`, one list per text, sorted by index."""
        return [
            [{"index": index, "value": value} for index, value in zip(row.indices.tolist(), row.values, strict=True)]
            for row in result.rows
        ]


def _by_id(terms: Sparse) -> dict[str, Any]:
    """Returns FlagEmbedding's `lexical_weights` of a text: each token id as a text, with its weight."""
    return {str(index): value for index, value in zip(terms.indices.tolist(), terms.values, strict=True)}


class Sentences(msgspec.Struct):
    """One sentence, and the sentences to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Named, kw_only=True):
    """`POST /similarity`; `parameters` are the options of encoding."""

    kinds = (Kind.EMBEDDING,)

    inputs: Sentences
    parameters: Common | None = None

    def to_task(self, model: ServedModel) -> Embed:
        """Returns the task."""
        if not self.inputs.sentences:
            raise EmptyInputError("`inputs.sentences` cannot be empty", param="inputs")
        texts: list[Text] = [self.inputs.source_sentence, *self.inputs.sentences]
        options = (self.parameters or Common()).encode_options(model)
        return Embed(texts, options, normalize=model.similarity == "cosine" or model.normalizes)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> Rows:
        """Returns the similarity of the source sentence to each other sentence, by the model's similarity function."""
        return _similarities(result.rows[0], result.rows[1:], context.model.similarity)


def _similarities(row: Rows, others: Rows, similarity: Similarity) -> Rows:
    """Returns f32[N]: the similarity of f32[D] to each of f32[N, D]; for "cosine", all must have length 1."""
    if similarity in {"cosine", "dot"}:
        products: Rows = others @ row
        return products
    distances: Rows = np.linalg.norm(others - row, ord=1 if similarity == "manhattan" else 2, axis=1)
    return -distances


async def info(call: Call) -> Mapping[str, Any]:
    """Answers `GET /info` for the model in the query parameter `model`, else for the first model."""
    service = call.service
    settings = service.settings
    return {
        "model_id": service.name,
        "served_model_name": service.name,
        "model_sha": service.revision,
        "model_dtype": service.engine.precision,
        "model_type": _model_type(service),
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": service.tokenizer.max_seq_len,
        "max_batch_tokens": settings.max_batch_tokens,
        "batch_tokens": service.batch_tokens,  # of a full batch
        "max_batch_requests": settings.max_batch_requests,
        "max_client_batch_size": settings.max_client_batch_size,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": settings.tokenization_workers,
        "version": bei_version(),
        "sha": None,  # the commit of the server and the label of its image; TEI's clients expect both fields
        "docker_label": None,
        "engine": service.engine.name,
        "compute_type": service.model.compute_type,
        "kind": service.model.kind.value,
        "roles": sorted(str(role) for role in service.model.roles),
        "dimensions": service.engine.row_width or service.engine.token_width,
        "prompts": sorted(service.spec.prompts),
    }


def _model_type(service: Service) -> Mapping[str, Any]:
    """Returns the `model_type` of TEI's `/info`."""
    kind, labels = service.model.kind, service.model.labels
    if labels:
        names = {str(index): label for index, label in enumerate(labels)}
        return {kind.tei_type: {"id2label": names, "label2id": {label: index for index, label in enumerate(labels)}}}
    return {kind.tei_type: {"pooling": "splade" if kind is Kind.SPARSE else service.model.pooling}}


_M3_OUTPUTS = object_of(
    dense_vecs=nullable(array_of(array_of(NUMBER))),
    lexical_weights=nullable(array_of(map_of(NUMBER))),
    colbert_vecs=nullable(array_of(array_of(array_of(NUMBER)))),
)

MODEL_INFO = object_of(model_id=STRING, model_sha=nullable(STRING), model_dtype=STRING, model_type=OBJECT)

ROUTES = (
    Route(
        "POST",
        "/embed",
        "TEI: `normalize`, `truncate`, `truncation_direction`, `prompt_name`, `dimensions`",
        EmbedRequest,
        example={"inputs": ["what grows", "a tree grows"]},
        reply=array_of(array_of(NUMBER)),
        by_fields=True,
    ),
    Route(
        "POST",
        "/embed_all",
        "a vector for every token; late-interaction models (ColBERT) and bge-m3 project and normalise them; for bge-m3 "
        "`return_dense`, `return_sparse`, `return_colbert_vecs` ask for several at once, in FlagEmbedding's form",
        EmbedAllRequest,
        example={"inputs": ["a tree grows"]},
        reply=any_of(array_of(array_of(array_of(NUMBER))), _M3_OUTPUTS),
        by_fields=True,
        default_for=(Kind.LATE_INTERACTION,),
    ),
    Route(
        "POST",
        "/embed_sparse",
        "the nonzero weights of a SPLADE model, or of bge-m3",
        EmbedSparseRequest,
        example={"inputs": ["a tree grows"]},
        reply=array_of(array_of(object_of(index=INTEGER, value=NUMBER))),
        by_fields=True,
        default_for=(Kind.SPARSE,),
    ),
    Route(
        "POST",
        "/similarity",
        "cosine similarities of one sentence to others",
        SimilarityRequest,
        example={"inputs": {"source_sentence": "what grows", "sentences": ["a tree grows", "a stone lies"]}},
        reply=array_of(NUMBER),
        by_fields=True,
    ),
    Route("GET", "/info", "what is served, and its limits", answer=info, reply=MODEL_INFO),
)
