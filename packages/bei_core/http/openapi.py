"""The OpenAPI document, made from the routes and the schemas of their bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from bei_core.http.replies import Plain
from bei_core.http.routes import ROUTES
from bei_core.http.shapes import BY_SHAPE
from bei_core.http.version import bei_version

PATHS = {"/openapi.json", "/api-doc/openapi.json", "/docs"}

_ERRORS = {
    "400": "empty, or not JSON",
    "401": "the key is missing or wrong",
    "404": "the `model` of the body is not served",
    "413": "the body is larger than payload_limit",
    "422": "a field has the wrong type or value",
    "424": "the model cannot do this, or the engine failed",
    "429": "too much is waiting; see Retry-After",
    "503": "starting, draining or broken",
    "504": "the request's deadline passed before it ran",
}

_NUMBER, _INTEGER, _STRING = ({"type": name} for name in ("number", "integer", "string"))


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(optional: Sequence[str] = (), **properties: object) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def _any(*schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


_USAGE = _object(prompt_tokens=_INTEGER, total_tokens=_INTEGER)
_LABELS = _list(_object(label=_STRING, score=_NUMBER))
_EMBEDDING = _object(object=_STRING, index=_INTEGER, embedding=_any(_list(_NUMBER), _STRING))
_EMBEDDINGS = _object(object=_STRING, data=_list(_EMBEDDING), model=_STRING, usage=_USAGE)
_CLASSES = _object(id=_STRING, object=_STRING, created=_INTEGER, model=_STRING, data=_list(_LABELS), usage=_USAGE)
_RANKS = _list(_object(["text"], index=_INTEGER, score=_NUMBER, text=_STRING))
_RESULT = _object(["document"], index=_INTEGER, relevance_score=_NUMBER, document=_object(text=_STRING))
_RANKING = _object(id=_STRING, model=_STRING, results=_list(_RESULT), meta={"type": "object"}, usage=_USAGE)
_TOKEN = _object(
    ["entity_group", "score", "word"],
    token=_STRING,
    token_id=_INTEGER,
    start=_INTEGER,
    end=_INTEGER,
    results={"type": "object", "additionalProperties": _NUMBER},
    entity_group=_STRING,
    score=_NUMBER,
    word=_STRING,
)
_ENTITY = _object(
    ["entity", "entity_group", "index"],
    entity=_STRING,
    entity_group=_STRING,
    score=_NUMBER,
    index=_INTEGER,
    word=_STRING,
    start=_INTEGER,
    end=_INTEGER,
)
_PLACE = {"type": ["integer", "null"]}
_MODEL = _object(id=_STRING, object=_STRING, created=_INTEGER, owned_by=_STRING)
_INFO = _object(
    model_id=_STRING, model_sha={"type": ["string", "null"]}, model_dtype=_STRING, model_type={"type": "object"}
)

# The JSON reply of each route; a route without an entry replies without a body or with another format.
_REPLIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/embeddings": _EMBEDDINGS,
    "/embeddings": _EMBEDDINGS,
    "/embed": _list(_list(_NUMBER)),
    "/embed_all": _list(_list(_list(_NUMBER))),
    "/embed_sparse": _list(_list(_object(index=_INTEGER, value=_NUMBER))),
    "/similarity": _list(_NUMBER),
    "/predict": _any(_LABELS, _list(_LABELS)),
    "/predict_tokens": _any(_list(_list(_TOKEN)), _list(_ENTITY), _list(_list(_ENTITY))),
    "/classify": _CLASSES,
    "/rerank": _any(_RANKS, _RANKING),
    "/v1/rerank": _any(_RANKS, _RANKING),
    "/v2/rerank": _any(_RANKS, _RANKING),
    "/vertex": _object(predictions=_list({})),
    "/tokenize": _list(
        _list(_object(id=_INTEGER, text=_STRING, special={"type": "boolean"}, start=_PLACE, stop=_PLACE))
    ),
    "/decode": _list(_STRING),
    "/v1/models": _object(object=_STRING, data=_list(_MODEL)),
    "/models": _object(object=_STRING, data=_list(_MODEL)),
    "/info": _INFO,
} | {path: {} for path in BY_SHAPE}

_PLAIN_ERROR = _object(error=_STRING, error_type=_STRING)
_OPENAI_ERROR = _object(error=_object(message=_STRING, type=_STRING, param={"type": ["string", "null"]}, code=_INTEGER))

# Plain HTML: a viewer loaded from the internet would not work in an air-gapped deployment.
_DOCS = "<!doctype html><title>BEI</title><h1>BEI</h1><ul>{}</ul><p><a href=openapi.json>openapi.json</a></p>"


def answer(path: str) -> dict[str, Any] | Plain:
    """The document, or for `/docs` a page that lists the routes."""
    if path != "/docs":
        return document()
    items = (f"<li><code>{route.method} {route.path}</code> {route.summary}</li>" for route in ROUTES)
    return Plain(_DOCS.format("".join(items)).encode(), "text/html")


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    bodies = [route.schema for route in ROUTES if route.schema is not None]
    _, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for route in ROUTES:
        schemas = [{"$ref": f"#/components/schemas/{route.schema.__name__}"}] if route.schema else []
        error = "OpenAIError" if route.openai else "Error"
        operation = _operation(route.path, route.summary, schemas, route.public, [error])
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    any_body = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in dict.fromkeys(bodies)]
    for path in sorted(BY_SHAPE):
        summary = "Any of the bodies, told apart by their fields"
        paths[path] = {"post": _operation(path, summary, any_body, False, ["Error", "OpenAIError"])}
    return {
        "openapi": "3.1.0",
        "info": {"title": "BEI", "version": bei_version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components | {"Error": _PLAIN_ERROR, "OpenAIError": _OPENAI_ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    path: str, summary: str, schemas: Sequence[dict[str, str]], public: bool, errors: Sequence[str]
) -> dict[str, Any]:
    """One operation. Its body fits one of `schemas`, if there are any; its errors fit one of `errors`."""
    failures = _ERRORS if schemas else {status: _ERRORS[status] for status in ("401", "404", "503")}
    error = _one_of([{"$ref": f"#/components/schemas/{name}"} for name in errors])
    responses: dict[str, Any] = {"200": {"description": "OK"}}
    if path in _REPLIES:
        types = ("application/json", "application/msgpack")
        responses["200"]["content"] = {kind: {"schema": _REPLIES[path]} for kind in types}
    for status, text in failures.items():
        responses[status] = {"description": text, "content": {"application/json": {"schema": error}}}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if schemas:
        body = {"application/json": {"schema": _one_of(schemas)}}
        operation["requestBody"] = {"required": True, "content": body}
    if not public:
        operation["security"] = [{}, {"key": []}]
    return operation


def _one_of(schemas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return schemas[0] if len(schemas) == 1 else _any(*schemas)
