"""Which route a body is for, by its fields: Truss, SageMaker, Vertex and Hugging Face have one path for all bodies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.schemas.baseten import PredictTokensRequest
from bei_core.http.schemas.cohere import RerankRequest
from bei_core.http.schemas.huggingface import PredictRequest
from bei_core.http.schemas.openai import EmbeddingsRequest
from bei_core.http.schemas.tei import EmbedAllRequest, EmbedRequest, EmbedSparseRequest, SimilarityRequest
from bei_core.models.kind import Kind
from bei_core.serving.service import Service

# The paths to which some clients send bodies for any route.
BY_SHAPE = frozenset({"/", "/invocations"})

# The routes that may be meant. A body is for the first one whose required fields it has; of several with the same
# required fields, all but the first are reached as the default only. Each schema is a `Body`.
SCHEMAS: Mapping[str, type[Any]] = {
    "/v1/embeddings": EmbeddingsRequest,
    "/embed": EmbedRequest,
    "/rerank": RerankRequest,
    "/predict": PredictRequest,
    "/predict_tokens": PredictTokensRequest,
    "/embed_sparse": EmbedSparseRequest,
    "/embed_all": EmbedAllRequest,
    "/similarity": SimilarityRequest,
}
_OBJECT = "/similarity"  # the one route whose inputs are an object
_NAMED = ("/v1/embeddings", "/embed", "/rerank", "/predict")  # in the error, to keep it short
_SHOWN = 200  # characters of what a client sent that an error repeats

# The route that a model of each kind is for.
DEFAULT_PATHS: Mapping[Kind, str] = {
    Kind.EMBEDDING: "/v1/embeddings",
    Kind.CLASSIFIER: "/predict",
    Kind.RERANKER: "/predict",
    Kind.TOKEN_CLASSIFIER: "/predict_tokens",
    Kind.SPARSE: "/embed_sparse",
    Kind.LATE_INTERACTION: "/embed_all",
}


def default_path(service: Service) -> str:
    """The route for a body whose fields allow several: that of the settings, else that of the model's kind."""
    return service.settings.webserver_default_route or DEFAULT_PATHS[service.model.kind]


def path_of(body: object, default: str) -> str:
    """The route for a decoded body: the default if it has the required fields, else the first route of `SCHEMAS`.

    A body that is no object is for the default, which refuses it. Raises ValidationError, which says what the routes
    require, for an object that fits none.
    """
    if not isinstance(body, dict):
        return default
    if isinstance(body.get("inputs"), dict):
        return _OBJECT
    names = body.keys()
    for path in (default, *_REQUIRED):
        if path in _REQUIRED and names >= _REQUIRED[path]:
            return path
    known = ", or ".join(f"{_quoted(_REQUIRED[path])} as {path} does" for path in _NAMED)
    raise ValidationError(
        f"the body fits no route: it needs {known}; this one has {_quoted(names)[:_SHOWN] or 'no fields'}"
    )


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(names))


_REQUIRED = {
    path: frozenset(field.encode_name for field in msgspec.structs.fields(schema) if field.required)
    for path, schema in SCHEMAS.items()
    if path != _OBJECT
}
