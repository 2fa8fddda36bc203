"""The examples in the API's document: every body is answered by a real server, and every reply has the shape said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bei_core.http.openapi import document
from bei_core.http.route import Route
from bei_core.http.routes import ROUTES
from bei_core.models.kind import Kind
from tests.conftest import MINILM
from tests.e2e.server import Server
from tests.golden.cases import GOLDEN

jsonschema = pytest.importorskip("jsonschema", reason="it comes with schemathesis, which needs Python 3.11")

MODELS = {
    Kind.EMBEDDING: MINILM,
    Kind.RERANKER: GOLDEN / "bert-rerank-pad7",
    Kind.CLASSIFIER: GOLDEN / "bert-topics-bf16-sharded",
    Kind.TOKEN_CLASSIFIER: GOLDEN / "bert-ner",
    Kind.SPARSE: GOLDEN / "splade-distilbert-modules",
}
POSTS = [route for route in ROUTES if route.method == "POST"]
REPLIES = [route for route in ROUTES if route.reply is not None]


@pytest.fixture(scope="module")
def servers(server_of: Callable[[Path], Server]) -> dict[Kind, Server]:
    return {kind: server_of(model) for kind, model in MODELS.items()}


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.path)
def test_every_example_is_answered(servers: dict[Kind, Server], route: Route) -> None:
    body = shown(route)["requestBody"]["content"]["application/json"]["example"]
    kind = next((kind for kind in (route.schema.kinds if route.schema else ()) if kind in servers), Kind.EMBEDDING)
    reply = servers[kind].post(route.path, body)
    assert reply.status_code == 200, reply.text
    jsonschema.validate(reply.json(), route.reply)


@pytest.mark.parametrize("route", REPLIES, ids=lambda route: f"{route.method} {route.path}")
def test_every_reply_that_is_shown_has_the_replys_shape(route: Route) -> None:
    said = shown(route)["responses"]["200"]["content"]["application/json"]
    jsonschema.validate(said["example"], said["schema"])
    assert said["example"] not in (None, [None])


def shown(route: Route) -> dict[str, Any]:
    """What the document says of a route."""
    return dict(document()["paths"][route.path][route.method.lower()])
