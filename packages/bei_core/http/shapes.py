"""Which route a body is for, by its fields alone: Truss, SageMaker and Hugging Face have one endpoint for all."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bei_core.errors import Validation
from bei_core.http.routes import ROUTES

# The POST routes that such an endpoint stands for. A body is for the first whose required fields it has, so of two that
# require the same, the second is reached as the default only: `webserver_default_route`, or what the model's kind says.
_PATHS = ("/v1/embeddings", "/embed", "/rerank", "/predict")

_REQUIRED = {
    route.path: frozenset(field.encode_name for field in msgspec.structs.fields(route.body) if field.required)
    for route in ROUTES
    if route.body is not None and route.path in _PATHS
}
_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])  # reads the names of fields and skips what is in them
_SHOWN = 200  # characters of what a caller sent that an error repeats


def path_of(body: bytes, default_route: str) -> str:
    """The route that takes such a body; `default_route` before any other, and for what is not a JSON object.

    Raises Validation, which says what the routes require, for an object that none of them takes.
    """
    try:
        fields = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return default_route  # which refuses it in its own words
    names = fields.keys()
    if bytes(fields.get("inputs", b"")).lstrip().startswith(b"{"):
        return "/similarity"  # the one route whose inputs are an object
    for path in (default_route, *_PATHS):
        if path in _REQUIRED and names >= _REQUIRED[path]:
            return path
    known = ", or ".join(f"{_quoted(_REQUIRED[path])} as {path} does" for path in _PATHS)
    raise Validation(f"predict takes an object with {known}; this one has {_quoted(names)[:_SHOWN] or 'no fields'}")


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(names))
