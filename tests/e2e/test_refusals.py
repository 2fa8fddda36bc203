"""Every bad request gets the reply that the contract names, in the shape of its route, and harms no other request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.e2e.server import LONG, MAX_TOKENS, REFERENCE, TEXTS, Server, vectors
from tests.golden.tolerance import compare

VOCABULARY = 30_522

# A route, its field for the inputs, and whether its errors have OpenAI's shape.
EMBED, OPENAI = ("/embed", "inputs", False), ("/v1/embeddings", "input", True)
both = pytest.mark.parametrize("route", [EMBED, OPENAI], ids=["tei", "openai"])

Route = tuple[str, str, bool]


@pytest.fixture(autouse=True)
def _unharmed(bei: Server, http: httpx.Client) -> Iterator[None]:
    """Check after each test that the server is healthy, gives right replies, and has logged no bug."""
    already = len(bei.log)
    yield
    assert http.get("/health").status_code == 200
    body = http.post("/v1/embeddings", json={"input": TEXTS[3]}).json()
    compare(vectors(body), REFERENCE.vectors[3:4], bei.tolerance())
    assert "bug" not in bei.log[already:]
    assert "Traceback" not in bei.log[already:]


def kind_of_tei(kind: str) -> str:
    """What text-embeddings-inference calls an error, by its own list of kinds."""
    return {"PayloadTooLarge": "Validation", "WrongTask": "Backend"}.get(kind, kind)


def check(reply: httpx.Response, status: int, kind: str, said: str, *, openai: bool, param: str | None = None) -> None:
    """Check that the reply is this error, in the format of the route."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    body = reply.json()
    if openai:
        error = body["error"]
        assert body == {"error": error, "message": error["message"], "code": status, "error_type": kind_of_tei(kind)}
        code = {(404, "model"): "model_not_found", (401, None): "invalid_api_key"}.get((status, param))
        assert (error["type"], error["code"], error["param"]) == (kind, code, param)
        message = error["message"]
    else:
        assert body.keys() == {"error", "error_type"}
        assert body["error_type"] == kind_of_tei(kind)
        message = body["error"]
    assert said in message
    assert len(message) < 2000, "repeats what the caller sent"


@both
@pytest.mark.parametrize(
    ("inputs", "status", "kind", "said"),
    [
        ('""', 400, "Empty", "empty"),
        ("[]", 400, "Empty", "empty"),
        ('[""]', 400, "Empty", "empty"),
        ('["a", ""]', 400, "Empty", "empty"),
        ("[[]]", 400, "Empty", "empty"),
        ("[[1], []]", 400, "Empty", "empty"),
        ("5", 422, "Validation", "int"),
        ("1.5", 422, "Validation", "float"),
        ("true", 422, "Validation", "bool"),
        ("null", 422, "Validation", "null"),
        ("{}", 422, "Validation", "object"),
        ('["a", null]', 422, "Validation", "null"),
        ('["a", true]', 422, "Validation", "bool"),
        ('[["a"]]', 422, "Validation", "str"),
        ("[[1.5]]", 422, "Validation", "float"),
        ("[[[1]]]", 422, "Validation", "array"),
        ('["a", 1]', 422, "Validation", "mixes"),
        ('[1, "a"]', 422, "Validation", "mixes"),
        ("[1, [2]]", 422, "Validation", "mixes"),
        (f"[{VOCABULARY}]", 422, "Validation", f"token id {VOCABULARY} "),
        (f"[[1], [2, {VOCABULARY}]]", 422, "Validation", f"token id {VOCABULARY} "),
        ("[-1]", 422, "Validation", "token id -1 "),
        (f"[{2**70}]", 422, "Validation", f"token id {2**70} "),
        (f"[1{'0' * 10_000}]", 422, "Validation", "out of range"),
        (f"[{'0, ' * 1024}{VOCABULARY}]", 422, "Validation", f"token id {VOCABULARY} "),
        (json.dumps(["a"] * 2049), 422, "Validation", "2049 > maximum allowed batch size 2048"),
        (json.dumps([""] * 2049), 422, "Validation", "2049 > maximum allowed batch size 2048"),
    ],
)
def test_inputs_that_cannot_be(
    http: httpx.Client, route: Route, inputs: str, status: int, kind: str, said: str
) -> None:
    path, field, openai = route
    reply = http.post(path, content=f'{{"{field}": {inputs}}}')
    check(reply, status, kind, said, openai=openai, param=field)
    assert field == "inputs" or "inputs" not in reply.text


@both
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("dimensions", "-1", "between 1 and 384"),
        ("dimensions", "385", "between 1 and 384"),
        ("dimensions", str(2**70), "between 1 and 384"),
        ("dimensions", "1e999", "dimensions"),
        ("dimensions", '"3"', "dimensions"),
        ("dimensions", "1.5", "dimensions"),
        ("dimensions", "true", "dimensions"),
        ("prompt_name", '"nobody"', "nobody"),
        ("prompt_name", json.dumps("n" * 100_000), "nnn"),
        ("prompt_name", "3", "prompt_name"),
        ("truncation_direction", '"up"', "Left or Right"),
        ("truncation_direction", '""', "Left or Right"),
        ("truncation_direction", "3", "truncation_direction"),
        ("truncate", '"MIDDLE"', "truncate"),
        ("truncate", "1", "truncate"),
    ],
)
def test_options_that_cannot_be(http: httpx.Client, route: Route, field: str, value: str, said: str) -> None:
    path, inputs, openai = route
    reply = http.post(path, content=f'{{"{inputs}": "a", "{field}": {value}}}')
    check(reply, 422, "Validation", said, openai=openai, param=field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoding_format", '"hex"'),
        ("encoding_format", "3"),
        ("input_type", '"riddle"'),
        ("input_type", "[]"),
        ("model", "3"),
        ("model", "[]"),
        ("user", "{}"),
        ("user", "3"),
    ],
)
def test_openais_own_options_that_cannot_be(http: httpx.Client, field: str, value: str) -> None:
    reply = http.post("/v1/embeddings", content=f'{{"input": "a", "{field}": {value}}}')
    check(reply, 422, "Validation", field, openai=True, param=field)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "said"),
    [
        ("/embed", {"inputs": "a", "normalize": "yes"}, 422, "Validation", "normalize"),
        ("/tokenize", {"inputs": []}, 400, "Empty", "empty"),
        ("/tokenize", {"inputs": [1]}, 422, "Validation", "inputs"),
        ("/tokenize", {"inputs": "a", "add_special_tokens": 1}, 422, "Validation", "add_special_tokens"),
        ("/tokenize", {"inputs": "a", "prompt_name": "nobody"}, 422, "Validation", "nobody"),
        ("/decode", {}, 422, "Validation", "ids"),
        ("/decode", {"ids": "a"}, 422, "Validation", "ids"),
        ("/decode", {"ids": [1, [2]]}, 422, "Validation", "ids"),
        ("/decode", {"ids": [VOCABULARY]}, 422, "Validation", f"token id {VOCABULARY} "),
        ("/decode", {"ids": [[1], [-1]]}, 422, "Validation", "token id -1 "),
    ],
)
def test_other_routes_bodies(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, kind: str, said: str
) -> None:
    check(http.post(path, json=body), status, kind, said, openai=False)


@both
def test_too_long_is_refused_where_it_may_not_be_cut(http: httpx.Client, route: Route) -> None:
    path, field, openai = route
    for inputs in (LONG, ["a", LONG], [1] * (MAX_TOKENS + 1), [[1], [1] * (MAX_TOKENS + 1)]):
        for truncate in (False, "NONE"):
            reply = http.post(path, json={field: inputs, "truncate": truncate})
            check(reply, 422, "Validation", f"`{field}` must have less than", openai=openai, param=field)


DEEP = b"[" * 60_000


@both
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "not JSON"),
        (b" ", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"FIELD": "a"', 400, "not JSON"),
        (b'{"FIELD": "a"}}', 400, "not JSON"),
        (b"{'FIELD': 'a'}", 400, "not JSON"),
        (b'{"FIELD": NaN}', 400, "not JSON"),
        (b'{"FIELD": "\xff"}', 400, "not JSON"),
        (b'{"FIELD": "\xed\xa0\x80"}', 400, "not JSON"),
        (b'{"FIELD": "\\ud800"}', 400, "not JSON"),
        (b'{"FIELD": "\\ud800\\u0041 and more"}', 400, "not JSON"),
        (b'{"FIELD": "\\udc00 and more"}', 400, "not JSON"),
        (b'{"FIELD": "a\x00b"}', 400, "not JSON"),
        (b'{"FIELD": "a\nb"}', 400, "not JSON"),
        (b"\xff\xfe{\x00}\x00", 400, "not JSON"),
        (b"\x00" * 1000, 400, "not JSON"),
        (b"\x1f\x8b\x08\x00\x00", 400, "not JSON"),
        (b"input=a", 400, "not JSON"),
        (DEEP, 422, "object"),
        (b'{"FIELD": ' + DEEP, 422, "array"),
        (b'{"FIELD": "a", "other": ' + DEEP, 400, "nested"),
        (b'{"FIELD": "a", "other": ' + DEEP + b"]" * 60_000 + b"}", 400, "nested"),
        (b'{"other": ' + b'{"a":' * 20_000, 400, "nested"),
        (b"[]", 422, "object"),
        (b'"a"', 422, "object"),
        (b"null", 422, "object"),
        (b"{}", 422, "FIELD"),
        (b'{"text": "a"}', 422, "FIELD"),
    ],
)
def test_bodies_that_cannot_be(http: httpx.Client, route: Route, body: bytes, status: int, said: str) -> None:
    path, field, openai = route
    reply = http.post(path, content=body.replace(b"FIELD", field.encode()))
    named = field if b"FIELD" in body or said == "FIELD" else None
    check(
        reply, status, "Validation", said.replace("FIELD", field), openai=openai, param=named if status == 422 else None
    )


@both
@pytest.mark.parametrize("first", [b"", b'{"FIELD": "'], ids=["from the first byte", "inside a text"])
def test_ten_megabytes_of_garbage(http: httpx.Client, route: Route, first: bytes) -> None:
    path, field, openai = route
    body = first.replace(b"FIELD", field.encode()) + np.random.default_rng(0).bytes(10_000_000)
    check(http.post(path, content=body), 400, "Validation", "not JSON", openai=openai)


def test_no_dimensions_are_refused_by_one_route_and_the_models_own_for_the_other(http: httpx.Client) -> None:
    """Infinity's client sends 0 to OpenAI's route if the user gives no number of dimensions."""
    refused = http.post("/embed", json={"inputs": "a", "dimensions": 0})
    check(refused, 422, "Validation", "between 1 and 384", openai=False, param="dimensions")
    whole = http.post("/v1/embeddings", json={"input": "a", "dimensions": 0})
    assert vectors(whole.json()).shape == (1, 384)


@both
@pytest.mark.parametrize(
    ("body", "of"),
    [
        (b'{"FIELD": "a", "other": [{"b": 1}], "raw_scores": 3}', "a"),
        (b'{"FIELD": "b", "FIELD": "a"}', "a"),
        (b'{"FIELD": "a\\u0000"}', "a"),
        (b'{"FIELD": "a", "prompt_name": null, "truncate": null, "dimensions": null}', "a"),
        (b' \n\t{ "FIELD" :\r\n"a" } \n', "a"),
    ],
    ids=["unknown fields", "a field twice", "a NUL", "nulls", "white space"],
)
@pytest.mark.parametrize("kind", [None, "application/json; charset=utf-8", "text/plain", "nonsense"])
def test_unusual_bodies_that_are_valid_are_answered(
    bei: Server, http: httpx.Client, route: Route, body: bytes, of: str, kind: str | None
) -> None:
    path, field, openai = route
    headers = {} if kind is None else {"content-type": kind}
    reply = http.post(path, content=body.replace(b"FIELD", field.encode()), headers=headers)
    assert reply.status_code == 200, reply.text
    rows = vectors(reply.json()) if openai else np.array(reply.json(), np.float32)
    expected = http.post("/embed", json={"inputs": of}).json()
    compare(rows, np.array(expected, np.float32), bei.tolerance())


@both
@pytest.mark.parametrize(
    ("name", "value", "status", "kind"),
    [
        ("x-priority", "urgent", 422, "Validation"),
        ("x-priority", "", 422, "Validation"),
        ("Request-Timeout-Ms", "0", 504, "DeadlineExceeded"),
        ("Request-Timeout-Ms", "-5", 504, "DeadlineExceeded"),
        ("Request-Timeout-Ms", "-inf", 504, "DeadlineExceeded"),
        ("Request-Timeout-Ms", "soon", 422, "Validation"),
        ("Request-Timeout-Ms", "", 422, "Validation"),
        ("Request-Timeout-Ms", "nan", 422, "Validation"),
        ("Request-Timeout-Ms", "1 000", 422, "Validation"),
        ("Request-Deadline-Ms", "1", 504, "DeadlineExceeded"),
        ("Request-Deadline-Ms", "tomorrow", 422, "Validation"),
    ],
)
def test_headers_that_cannot_be_kept(
    http: httpx.Client, route: Route, name: str, value: str, status: int, kind: str
) -> None:
    path, field, openai = route
    reply = http.post(path, json={field: "a"}, headers={name: value})
    said, param = (name.lower(), name.lower()) if status == 422 else ("deadline", None)
    check(reply, status, kind, said, openai=openai, param=param)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-priority", "High"),
        ("x-priority", "low"),
        ("Request-Timeout-Ms", "60000"),
        ("Request-Timeout-Ms", "6e4"),
        ("Request-Timeout-Ms", "inf"),
        ("Request-Deadline-Ms", "4102444800000.5"),  # the year 2100
    ],
)
def test_headers_that_can_be_kept(http: httpx.Client, name: str, value: str) -> None:
    assert http.post("/embed", json={"inputs": "a"}, headers={name: value}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("PUT", "/", 405, "MethodNotAllowed"),
        ("POST", "/nowhere", 404, "NotFound"),
        ("GET", "/embed/", 405, "MethodNotAllowed"),
        ("GET", "/EMBED", 404, "NotFound"),
        ("GET", "/%00%ff%0d%0aa:b", 404, "NotFound"),
        ("GET", "/v1/nowhere", 404, "NotFound"),
        ("GET", "/embed", 405, "MethodNotAllowed"),
        ("PUT", "/embed", 405, "MethodNotAllowed"),
        ("DELETE", "/health", 405, "MethodNotAllowed"),
        ("POST", "/health", 405, "MethodNotAllowed"),
        ("OPTIONS", "/embed", 405, "MethodNotAllowed"),
        ("PATCH", "/v1/embeddings", 405, "MethodNotAllowed"),
        ("POST", "/docs", 405, "MethodNotAllowed"),
    ],
)
def test_unknown_routes_and_methods_are_refused(
    http: httpx.Client, method: str, path: str, status: int, kind: str
) -> None:
    reply = http.request(method, path)
    check(reply, status, kind, "", openai=path.startswith("/v1"))
    assert http.request("HEAD", "/nowhere").content == b""
