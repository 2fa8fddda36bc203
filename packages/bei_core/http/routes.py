"""The table of all routes, joined from the tables of the APIs. Add each new file of `http/schemas/` to `APIS`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from bei_core.http.field_router import FieldRouter
from bei_core.http.route import Route

# The files of `http/schemas/` that have routes, in the order of docs/routes.md. The order also matters for the paths
# that take any body: if several routes require the same fields, the first one answers.
APIS = (
    "openai",
    "tokens",
    "tei",
    "cohere",
    "rerank",
    "elastic",
    "mixedbread",
    "huggingface",
    "baseten",
    "infinity",
    "vllm",
    "nvidia",
    "ollama",
    "weaviate",
    "any_body",
    "probes",
)


def _routes_of(api: str) -> tuple[Route, ...]:
    routes: tuple[Route, ...] = import_module(f"{__package__}.schemas.{api}").ROUTES
    return routes


WRITTEN_ROUTES = tuple(route for api in APIS for route in _routes_of(api))

# One row for each path: an alias is a route of its own, which the paths that take any body do not choose.
ROUTES = tuple(
    replace(route, path=path, by_fields=route.by_fields and path == route.path, aliases=())
    for route in WRITTEN_ROUTES
    for path in (route.path, *route.aliases)
)

FIELD_ROUTER = FieldRouter(ROUTES)
