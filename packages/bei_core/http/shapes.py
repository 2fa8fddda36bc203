"""Which route a body is for, by its fields alone: Truss, SageMaker, Vertex, Hugging Face have one endpoint for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.requests import EmbeddingsRequest, EmbedRequest
from bei_core.http.scored import PredictRequest, RerankRequest
from bei_core.http.tokenwise import EmbedAllRequest, EmbedSparseRequest, PredictTokensRequest
from bei_core.serving.service import Service

# The POST routes that such an endpoint stands for. A body is for the first whose required fields it has, so of those
# that require the same, all but one are reached as the default only: `webserver_default_route`, or the kind's.
_BODIES: Mapping[str, type[msgspec.Struct]] = {
    "/v1/embeddings": EmbeddingsRequest,
    "/embed": EmbedRequest,
    "/rerank": RerankRequest,
    "/predict": PredictRequest,
    "/predict_tokens": PredictTokensRequest,
    "/embed_sparse": EmbedSparseRequest,
    "/embed_all": EmbedAllRequest,
}
_NAMED = ("/v1/embeddings", "/embed", "/rerank", "/predict")  # in the error, which need not be longer

_USUAL = {
    "embedding": "/v1/embeddings",
    "classifier": "/predict",
    "reranker": "/predict",
    "token-classifier": "/predict_tokens",
    "sparse": "/embed_sparse",
    "late-interaction": "/embed_all",
}

_REQUIRED = {
    path: frozenset(field.encode_name for field in msgspec.structs.fields(body) if field.required)
    for path, body in _BODIES.items()
}
_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])  # reads the names of fields and skips what is in them
_SHOWN = 200  # characters of what a caller sent that an error repeats


class VertexRequest(msgspec.Struct):
    """`POST /vertex`, Google's: bodies of other routes."""

    instances: list[msgspec.Raw]


def usual_path(kind: str) -> str:
    """The route that a model of this kind is for."""
    return _USUAL[kind]


def default_path(service: Service) -> str:
    """The route for a body of no other shape: the settings', else that of the model's kind."""
    return service.settings.webserver_default_route or usual_path(service.kind)


def path_of(body: bytes, default_route: str) -> str:
    """The route that takes such a body; `default_route` before any other, and for what is not a JSON object.

    Raises ValidationError, which says what the routes require, for an object that none of them takes.
    """
    try:
        fields = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return default_route  # which refuses it in its own words
    names = fields.keys()
    if bytes(fields.get("inputs", b"")).lstrip().startswith(b"{"):
        return "/similarity"  # the one route whose inputs are an object
    for path in (default_route, *_BODIES):
        if path in _REQUIRED and names >= _REQUIRED[path]:
            return path
    known = ", or ".join(f"{_quoted(_REQUIRED[path])} as {path} does" for path in _NAMED)
    raise ValidationError(
        f"predict takes an object with {known}; this one has {_quoted(names)[:_SHOWN] or 'no fields'}"
    )


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(names))
