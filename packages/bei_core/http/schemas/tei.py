"""The API of text-embeddings-inference: `/embed` and its variants, `/similarity`, `/info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from bei_core.errors import EmptyInputError, WrongTaskError
from bei_core.http.json_schema import INTEGER, NUMBER, OBJECT, STRING, array_of, nullable, object_of
from bei_core.http.route import Call, Route
from bei_core.http.schemas import tokens
from bei_core.http.schemas.common import Common, Input, Named, RequestContext, inputs_of
from bei_core.http.version import bei_version
from bei_core.models.kind import Kind
from bei_core.models.modules import Pooling
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result, Service
from bei_core.tasks import Embed, EmbedAll, EmbedSparse, Rows, Sparse, Text, TokenRows, check_dimensions, similarities


class EmbedRequest(Common):
    """`POST /embed`."""

    kinds = (Kind.EMBEDDING,)

    inputs: Input
    normalize: bool = True
    dimensions: int | None = None

    def to_task(self, model: ServedModel) -> Embed:
        """Returns the task."""
        inputs, options = inputs_of(self.inputs, "inputs"), self.encode_options(model)
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

    def to_task(self, model: ServedModel) -> EmbedAll:
        """Returns the task."""
        if not model.token_width:
            raise WrongTaskError(f"{model.name} gives no vectors of tokens")
        return EmbedAll(inputs_of(self.inputs, "inputs"), self.encode_options(model))

    def to_reply(self, result: Result[list[TokenRows]], context: RequestContext) -> list[TokenRows]:
        """Returns the token vectors of each text: N arrays f32[T, E]."""
        return [np.ascontiguousarray(rows) for rows in result.rows]


class EmbedSparseRequest(Common):
    """`POST /embed_sparse`."""

    kinds = (Kind.SPARSE,)

    inputs: Input

    def to_task(self, model: ServedModel) -> EmbedSparse:
        """Returns the task."""
        return EmbedSparse(inputs_of(self.inputs, "inputs"), self.encode_options(model))

    def to_reply(self, result: Result[list[Sparse]], context: RequestContext) -> list[list[dict[str, Any]]]:
        """Returns `[[{index, value}]]`, one list per text, sorted by index."""
        return [
            [{"index": index, "value": value} for index, value in zip(row.indices.tolist(), row.values, strict=True)]
            for row in result.rows
        ]


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
        return similarities(result.rows[0], result.rows[1:], context.model.similarity)


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
        "max_batch_requests": settings.max_batch_requests,
        "max_client_batch_size": settings.max_client_batch_size,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": settings.tokenization_workers or 1,
        "version": bei_version(),
        "sha": None,  # the commit of the server and the label of its image; TEI's clients expect both fields
        "docker_label": None,
        "engine": service.engine.name,
        "compute_type": service.model.compute_type,
        "kind": service.model.kind.value,
        "dimensions": service.engine.row_width or service.engine.token_width,
        "prompts": sorted(service.spec.prompts),
    }


def _model_type(service: Service) -> Mapping[str, Any]:
    """Returns the `model_type` of TEI's `/info`."""
    kind, labels = service.model.kind, service.model.labels
    if labels:
        names = {str(index): label for index, label in enumerate(labels)}
        return {kind.tei_type: {"id2label": names, "label2id": {label: index for index, label in enumerate(labels)}}}
    modes = [mode for module in service.spec.modules if isinstance(module, Pooling) for mode in module.modes]
    pooling = "splade" if kind is Kind.SPARSE else "+".join(modes) or "none"
    return {kind.tei_type: {"pooling": pooling.replace("lasttoken", "last_token")}}


_MODEL_INFO = object_of(model_id=STRING, model_sha=nullable(STRING), model_dtype=STRING, model_type=OBJECT)

ROUTES = (
    *tokens.ROUTES,
    Route(
        "POST",
        "/embed",
        "TEI: `normalize`, `truncate`, `truncation_direction`, `prompt_name`, `dimensions`",
        EmbedRequest,
        example={"inputs": ["what grows", "a tree grows"]},
        reply=array_of(array_of(NUMBER)),
        by_shape=True,
    ),
    Route(
        "POST",
        "/embed_all",
        "a vector for every token; late-interaction models (ColBERT) project and normalise them",
        EmbedAllRequest,
        example={"inputs": ["a tree grows"]},
        reply=array_of(array_of(array_of(NUMBER))),
        by_shape=True,
        default_for=(Kind.LATE_INTERACTION,),
    ),
    Route(
        "POST",
        "/embed_sparse",
        "the nonzero weights of a SPLADE model",
        EmbedSparseRequest,
        example={"inputs": ["a tree grows"]},
        reply=array_of(array_of(object_of(index=INTEGER, value=NUMBER))),
        by_shape=True,
        default_for=(Kind.SPARSE,),
    ),
    Route(
        "POST",
        "/similarity",
        "cosine similarities of one sentence to others",
        SimilarityRequest,
        example={"inputs": {"source_sentence": "what grows", "sentences": ["a tree grows", "a stone lies"]}},
        reply=array_of(NUMBER),
        by_shape=True,
    ),
    Route("GET", "/info", "what is served, and its limits", answer=info, reply=_MODEL_INFO),
)
