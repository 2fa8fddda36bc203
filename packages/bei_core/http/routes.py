"""The table of all routes, joined from the tables of the APIs. Add each new file of `http/schemas/` to `APIS`."""

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

# The order matters for the paths that take any body: if several routes require the same fields, the first one answers.
APIS = (openai, tei, cohere, rerank, huggingface, baseten, infinity, nvidia, ollama, any_body, probes)

ROUTES = tuple(
    replace(route, path=path, by_shape=route.by_shape and path == route.path, aliases=())
    for api in APIS
    for route in api.ROUTES
    for path in (route.path, *route.aliases)
)

BY_SHAPE = ByShape(ROUTES)
