"""The table of routes, joined from the APIs' own. A new file of `http/schemas/` is added to `APIS`."""

from __future__ import annotations

from dataclasses import replace

from bei_core.http.schemas import (
    any_body,
    baseten,
    cohere,
    huggingface,
    infinity,
    nvidia,
    ollama,
    openai,
    probes,
    rerank,
    tei,
)
from bei_core.http.shapes import ByShape

# Of the routes whose bodies have the same required fields, the first answers where a client has one path for all.
APIS = (openai, tei, cohere, rerank, huggingface, baseten, infinity, nvidia, ollama, any_body, probes)

ROUTES = tuple(
    replace(route, path=path, by_shape=route.by_shape and path == route.path, aliases=())
    for api in APIS
    for route in api.ROUTES
    for path in (route.path, *route.aliases)
)

BY_SHAPE = ByShape(ROUTES)
