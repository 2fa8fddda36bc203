"""The OpenAPI document, generated from the routes and their schemas."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from bei_core.http.json_schema import STRING, any_of, sample
from bei_core.http.replies import JSON, Plain
from bei_core.http.route import Call, Route
from bei_core.http.routes import ROUTES
from bei_core.http.ui import PAGES
from bei_core.http.version import bei_version

_ERRORS = {
    "400": "empty, or not JSON",
    "401": "the key is missing or wrong",
    "404": "the `model` of the body is not served",
    "413": "the body is larger than payload_limit",
    "415": "the content-encoding of the body is not known",
    "422": "a field has the wrong type or value",
    "424": "the model cannot do this, or the engine failed",
    "429": "too much is waiting; see Retry-After",
    "503": "starting, draining or broken",
    "504": "the request's deadline passed before it ran",
}


@cache
def document(*, with_pages: bool = True) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document, as JSON values; with the web pages if `with_pages`."""
    bodies = [route.schema for route in ROUTES if route.schema is not None]
    _, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    errors = {route.errors.name: route.errors.schema for route in ROUTES}
    paths: dict[str, Any] = {}
    for route in (*ROUTES, *(PAGES if with_pages else ())):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "BEI", "version": bei_version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components | errors,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    """Returns the OpenAPI operation of a route.

    A route that takes any body lists the body schemas and the errors of all routes that it can stand for.
    """
    answering = [each for each in ROUTES if each.by_fields] if route.takes_any else [route]
    schemas = dict.fromkeys(each.schema.__name__ for each in answering if each.schema)
    failures = _ERRORS if schemas else {status: _ERRORS[status] for status in ("401", "404", "503")}
    error = _one_of(dict.fromkeys(each.errors.name for each in answering))
    responses: dict[str, Any] = {"200": {"description": "OK"}}
    if route.reply is not None:
        types = ("application/json", "application/msgpack")
        shown = route.reply_example if route.reply_example is not None else sample(route.reply)
        responses["200"]["content"] = {kind: {"schema": route.reply} for kind in types}
        responses["200"]["content"]["application/json"] = {"schema": route.reply, "example": shown}
    if route in PAGES:
        responses["200"]["content"] = {"text/html": {"schema": STRING}}
    for status, text in failures.items():
        responses[status] = {"description": text, "content": {"application/json": {"schema": error}}}
    operation: dict[str, Any] = {"summary": route.summary, "responses": responses}
    if "{" in route.path:
        name = route.path.partition("{")[2].partition("}")[0]
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": STRING}]
    if schemas:
        content = {"application/json": {"schema": _one_of(schemas), "example": route.example}}
        operation["requestBody"] = {"required": True, "content": content}
    if not route.public:
        operation["security"] = [{}, {"key": []}]
    return operation


def _one_of(names: dict[str, None]) -> Any:  # noqa: ANN401 - JSON
    """Returns a schema that allows any of the components with these names."""
    return any_of(*({"$ref": f"#/components/schemas/{name}"} for name in names))


async def _answer(call: Call) -> Plain:
    """Returns the OpenAPI document for `GET /openapi.json`."""
    return Plain(_encoded(with_pages=call.service.settings.ui), JSON)


@cache
def _encoded(*, with_pages: bool) -> bytes:
    return msgspec.json.encode(document(with_pages=with_pages))


_PATHS = ("/openapi.json", "/api-doc/openapi.json")
DESCRIPTION = tuple(Route("GET", path, "the description of the API", answer=_answer, public=True) for path in _PATHS)


def documents(*, with_pages: bool) -> tuple[Route, ...]:
    """Returns the routes of the OpenAPI document and, if `with_pages`, those of the web pages."""
    return DESCRIPTION + (PAGES if with_pages else ())
