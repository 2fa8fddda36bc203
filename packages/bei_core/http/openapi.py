"""The OpenAPI document, made from the routes and the structs that decode their bodies."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from starlette.responses import HTMLResponse, Response

from bei_core.http.responses import json_response
from bei_core.http.routes import ROUTES, Route, bei_version

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
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "BEI", "version": bei_version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    responses = {"200": {"description": "OK"}}
    failures = _ERRORS if route.body is not None else {status: _ERRORS[status] for status in ("401", "503")}
    responses |= {status: {"description": text} for status, text in failures.items()}
    operation: dict[str, Any] = {"summary": route.summary, "responses": responses}
    if route.body is not None:
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if not route.public:
        operation["security"] = [{}, {"key": []}]
    return operation
