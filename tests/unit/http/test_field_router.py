"""The route of a body that is sent to Truss's predict endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from bei_core.config.trt_llm import DefaultRoute
from bei_core.errors import MalformedBodyError, ValidationError
from bei_core.http import schemas
from bei_core.http.routes import APIS, FIELD_ROUTER, ROUTES
from bei_core.http.schemas.common import convert, decode
from bei_core.http.schemas.openai import EmbeddingsRequest
from bei_core.http.schemas.tei import EmbedRequest
from bei_core.models.kind import Kind

OPENAI, TEI = "/v1/embeddings", "/embed"
DEFAULT_PATHS = {kind: route.path for kind, route in FIELD_ROUTER.defaults.items()}


def path_of(body: object, default: str) -> str:
    return FIELD_ROUTER.choose(body, FIELD_ROUTER.routes[default]).path


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
    assert path_of(body, default) == path


def test_inputs_are_for_predict_where_that_is_the_default() -> None:
    assert path_of({"inputs": "a"}, "/predict") == "/predict"


@pytest.mark.parametrize("default", [OPENAI, TEI])
def test_the_default_decides_where_two_would_do(default: str) -> None:
    assert path_of({"input": "a", "inputs": "a"}, default) == default


@pytest.mark.parametrize("body", [b"5", b'"a"', b"null", b'["a"]'])
def test_a_body_that_is_no_object_goes_to_the_default_route_which_refuses_it(body: bytes) -> None:
    value = decode(body, object)
    assert path_of(value, TEI) == TEI
    with pytest.raises(ValidationError):
        convert(value, EmbedRequest)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"\xff": 1}', b"garbage" * 1000, b"[" * 100_000])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        decode(body, object)


def read_directly(body: object) -> object:
    return decode(msgspec.json.encode(body), EmbeddingsRequest)


def read_by_fields(body: object) -> object:
    return convert(decode(msgspec.json.encode(body), object), EmbeddingsRequest)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": 5},
        {"input": None},
        {"input": ["a", 5, [True]]},
        {"input": "a", "encoding_format": "hex"},
        {"input": "a", "max_tokens_per_doc": 0},
        {"input": "a", "dimensions": 1.5},
    ],
    ids=str,
)
def test_a_body_sent_to_any_path_is_refused_in_the_words_of_its_route(body: object) -> None:
    told = []
    for read in (read_directly, read_by_fields):
        with pytest.raises(ValidationError) as refused:
            read(body)
        told.append((refused.value.message, refused.value.param))
    assert told[0] == told[1]


@pytest.mark.parametrize(("body", "named"), [({}, "no fields"), ({"text": "a", "b": 1}, "`b` and `text`")])
def test_the_error_names_the_accepted_fields_and_the_given_ones(body: object, named: str) -> None:
    with pytest.raises(ValidationError) as raised:
        path_of(body, OPENAI)
    for part in ("`input` as /v1/embeddings does", "`inputs` as /embed does", named):
        assert part in raised.value.message


def test_the_error_repeats_little_of_a_large_body() -> None:
    with pytest.raises(ValidationError) as raised:
        path_of({f"field-{number}": 0 for number in range(10_000)}, OPENAI)
    assert len(raised.value.message) < 400


@pytest.mark.parametrize("body", [{"input": "a"}, {"inputs": "a"}])
def test_only_routes_that_exist(body: object) -> None:
    assert path_of(body, OPENAI) in {route.path for route in ROUTES if route.method == "POST"}


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
def test_the_kind_of_model_decides_the_route_of_inputs(kind: str, path: str) -> None:
    assert path_of({"inputs": "a"}, DEFAULT_PATHS[Kind(kind)]) == path
    assert path_of({"inputs": "a", "parameters": {}}, DEFAULT_PATHS[Kind(kind)]) == path
    assert path_of({"query": "a", "texts": ["b"]}, DEFAULT_PATHS[Kind(kind)]) == "/rerank"
    assert path_of({"input": "a"}, DEFAULT_PATHS[Kind(kind)]) == OPENAI


def test_every_kind_has_a_route() -> None:
    assert DEFAULT_PATHS.keys() == set(Kind)
    assert set(DEFAULT_PATHS.values()) <= {route.path for route in ROUTES}


def test_every_route_of_the_table_that_a_body_may_be_for_has_a_schema_with_required_fields() -> None:
    for route in FIELD_ROUTER.routes.values():
        assert route.schema is not None
        assert any(field.required for field in msgspec.structs.fields(route.schema))


def test_every_file_of_an_api_is_in_the_table() -> None:
    files = Path(schemas.__path__[0]).glob("*.py")
    with_routes = {file.stem for file in files if "\nROUTES = " in file.read_text(encoding="utf-8")}
    assert with_routes == set(APIS), "name the file in APIS of http/routes.py"
    assert len(set(APIS)) == len(APIS)


def test_no_two_routes_have_the_same_method_and_path() -> None:
    places = [(route.method, route.path) for route in ROUTES]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("default", [OPENAI, TEI, "/predict"])
def test_an_object_is_for_the_route_that_takes_one(default: str) -> None:
    assert path_of({"inputs": {"source_sentence": "a", "sentences": ["b"]}}, default) == "/similarity"
    assert path_of({"inputs": {}}, default) == "/similarity"  # which names the field that it lacks


def test_a_wrong_object_is_the_routes_to_name() -> None:
    assert path_of({"query": {"text": "a"}, "texts": ["b"]}, OPENAI) == "/rerank"


def test_the_setting_for_truss_names_routes_that_a_body_may_be_for() -> None:
    known = set(get_args(DefaultRoute))
    assert known <= FIELD_ROUTER.routes.keys()
