"""Which route Truss's one predict endpoint takes a body for."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from bei_core.errors import ValidationError
from bei_core.http.routes import ROUTES
from bei_core.http.shapes import path_of, usual_path
from bei_core.models.spec import Kind

OPENAI, TEI = "/v1/embeddings", "/embed"


@pytest.mark.parametrize("default", [OPENAI, TEI, "/rerank"])
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"input": "a"}, OPENAI),
        ({"input": ["a"], "model": "m", "encoding_format": "base64", "unknown": {}}, OPENAI),
        ({"inputs": "a"}, TEI),
        ({"inputs": [["a", "b"]], "truncate": True}, TEI),
        ({"inputs": 5}, TEI),  # a wrong type is the route's to name
        ({"input": None}, OPENAI),
        ({"query": "a", "texts": ["b"]}, "/rerank"),
        ({"query": "a", "documents": ["b"], "top_n": 1}, "/rerank"),
    ],
)
def test_the_fields_decide_where_they_can(body: object, path: str, default: str) -> None:
    assert path_of(msgspec.json.encode(body), default) == path


def test_inputs_are_for_predict_where_that_is_the_default() -> None:
    assert path_of(b'{"inputs": "a"}', "/predict") == "/predict"


@pytest.mark.parametrize("default", [OPENAI, TEI])
def test_the_default_decides_where_two_would_do(default: str) -> None:
    assert path_of(b'{"input": "a", "inputs": "a"}', default) == default


@pytest.mark.parametrize(
    "body", [b"", b"{", b"5", b'"a"', b"null", b'["a"]', b"\xff", b'{"\xff": 1}', b"garbage" * 1000]
)
def test_what_is_no_object_is_left_to_the_default(body: bytes) -> None:
    assert path_of(body, TEI) == TEI


@pytest.mark.parametrize(("body", "named"), [({}, "no fields"), ({"text": "a", "b": 1}, "`b` and `text`")])
def test_the_error_says_what_would_do_and_what_was_there(body: object, named: str) -> None:
    with pytest.raises(ValidationError) as raised:
        path_of(msgspec.json.encode(body), OPENAI)
    for part in ("`input` as /v1/embeddings does", "`inputs` as /embed does", named):
        assert part in raised.value.message


def test_the_error_repeats_little_of_a_large_body() -> None:
    with pytest.raises(ValidationError) as raised:
        path_of(msgspec.json.encode({f"field-{number}": 0 for number in range(10_000)}), OPENAI)
    assert len(raised.value.message) < 400


@pytest.mark.parametrize("body", [{"input": "a"}, {"inputs": "a"}])
def test_only_routes_that_exist(body: object) -> None:
    assert path_of(msgspec.json.encode(body), OPENAI) in {route.path for route in ROUTES if route.method == "POST"}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("token-classifier", "/predict_tokens"),
        ("sparse", "/embed_sparse"),
        ("late-interaction", "/embed_all"),
        ("classifier", "/predict"),
        ("reranker", "/predict"),
    ],
)
def test_a_models_kind_says_what_inputs_are_for(kind: str, path: str) -> None:
    assert path_of(b'{"inputs": "a"}', usual_path(kind)) == path
    assert path_of(b'{"inputs": "a", "parameters": {}}', usual_path(kind)) == path
    assert path_of(b'{"query": "a", "texts": ["b"]}', usual_path(kind)) == "/rerank"
    assert path_of(b'{"input": "a"}', usual_path(kind)) == OPENAI


def test_every_kind_has_a_route() -> None:
    assert {usual_path(kind) for kind in get_args(Kind)} <= {route.path for route in ROUTES}
