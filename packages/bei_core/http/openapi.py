"""The OpenAPI document, made from the routes and the structs that decode their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from starlette.responses import HTMLResponse, Response

from bei_core.http.responses import json_response
from bei_core.http.routes import BY_SHAPE, ROUTES, bei_version

PATHS = {"/openapi.json", "/api-doc/openapi.json", "/docs"}

_ERRORS = {
    "400": "empty, or not JSON",
    "401": "the key is missing or wrong",
    "413": "the body is larger than payload_limit",
    "422": "a field has the wrong type or value",
    "424": "the model does not do this, or the engine failed",
    "429": "too much is waiting; see Retry-After",
    "503": "starting, draining or broken",
    "504": "the request's deadline passed before it ran",
}

# Plain HTML: a page that loads a viewer from a content network would not work in an air-gapped deployment.
_DOCS = "<!doctype html><title>BEI</title><h1>BEI</h1><ul>{}</ul><p><a href=openapi.json>openapi.json</a></p>"


def respond(path: str) -> Response:
    """The document, or a page that lists the routes."""
    if path != "/docs":
        return json_response(document())
    items = (f"<li><code>{route.method} {route.path}</code> {route.summary}</li>" for route in ROUTES)
    return HTMLResponse(_DOCS.format("".join(items)))


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    bodies = [route.body for route in ROUTES if route.body is not None]
    _, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for route in ROUTES:
        schemas = [{"$ref": f"#/components/schemas/{route.body.__name__}"}] if route.body else []
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route.summary, schemas, route.public)
    any_body = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in dict.fromkeys(bodies)]
    for path in sorted(BY_SHAPE):
        paths[path] = {"post": _operation("Any of the bodies, told apart by their fields", any_body, False)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "BEI", "version": bei_version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(summary: str, schemas: Sequence[dict[str, str]], public: bool) -> dict[str, Any]:
    """One operation, whose body fits one of `schemas`; without any it has none."""
    responses = {"200": {"description": "OK"}}
    failures = _ERRORS if schemas else {status: _ERRORS[status] for status in ("401", "503")}
    responses |= {status: {"description": text} for status, text in failures.items()}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if schemas:
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if not public:
        operation["security"] = [{}, {"key": []}]
    return operation
