"""text-embeddings-inference's routes, and what every route's replies say about themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest

from bei_core.tasks import Rows, l2_normalize
from tests.e2e.server import LONG, MAX_TOKENS, NAME, REFERENCE, SHORT, TEXTS, WIDTH, Server, samples, vectors
from tests.golden.tolerance import compare

CLS, SEP = 101, 102

TEI_METRICS = {
    "te_request_count": "counter",
    "te_request_success": "counter",
    "te_request_failure": "counter",
    "te_request_duration": "histogram",
    "te_request_tokenization_duration": "histogram",
    "te_request_queue_duration": "histogram",
    "te_request_inference_duration": "histogram",
    "te_request_input_length": "histogram",
    "te_batch_next_size": "histogram",
    "te_batch_next_tokens": "histogram",
    "te_queue_size": "gauge",
}


def embed(http: httpx.Client, inputs: object, **options: object) -> Rows:
    """f32[N, D] of `/embed`."""
    reply = http.post("/embed", json={"inputs": inputs, **options})
    assert reply.status_code == 200, reply.text
    rows = np.array(reply.json(), np.float32)
    assert rows.ndim == 2
    return rows


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (TEXTS[2], [2]),
        ([TEXTS[2]], [2]),
        ([TEXTS[index] for index in SHORT], SHORT),
        (REFERENCE.ids[2].tolist(), [2]),
        ([REFERENCE.ids[2].tolist(), REFERENCE.ids[3].tolist()], [2, 3]),
        ([TEXTS[2], REFERENCE.ids[3].tolist(), TEXTS[4]], [2, 3, 4]),
    ],
    ids=["a text", "a list of one", "texts", "ids", "lists of ids", "texts and lists of ids"],
)
def test_embed_gives_a_row_an_input(bei: Server, http: httpx.Client, inputs: object, expected: list[int]) -> None:
    compare(embed(http, inputs), REFERENCE.vectors[expected], bei.tolerance())


def test_normalize_false_leaves_the_length(bei: Server, http: httpx.Client) -> None:
    rows = embed(http, TEXTS[:20], normalize=False)
    assert not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=0.1)
    compare(l2_normalize(rows), REFERENCE.vectors[:20], bei.tolerance())


def test_dimensions_cut_first_and_normalise_then(http: httpx.Client) -> None:
    whole = embed(http, TEXTS[2], normalize=False)
    assert np.allclose(embed(http, TEXTS[2], dimensions=7, normalize=False), whole[:, :7], rtol=1e-3, atol=1e-4)
    assert np.allclose(embed(http, TEXTS[2], dimensions=7), l2_normalize(whole[:, :7]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, slice(0, MAX_TOKENS - 2)),
        ({"truncation_direction": "Right"}, slice(0, MAX_TOKENS - 2)),
        ({"truncation_direction": "Left"}, slice(-(MAX_TOKENS - 2), None)),
        ({"truncation_direction": "left"}, slice(-(MAX_TOKENS - 2), None)),
        ({"truncate": True}, slice(0, MAX_TOKENS - 2)),
        ({"truncate": "END"}, slice(0, MAX_TOKENS - 2)),
        ({"truncate": "START"}, slice(-(MAX_TOKENS - 2), None)),
        ({"truncate": None}, slice(0, MAX_TOKENS - 2)),
    ],
)
def test_a_long_text_is_truncated_at_the_requested_side(
    bei: Server, http: httpx.Client, options: dict[str, Any], kept: slice
) -> None:
    words = " ".join(["red"] * 200 + ["blue"] * 200)
    ids = [token["id"] for token in http.post("/tokenize", json={"inputs": words}).json()[0]]
    expected = embed(http, [[CLS, *ids[1:-1][kept], SEP]])
    compare(embed(http, words, **options), expected, bei.tolerance())


def test_what_just_fits_is_not_refused(bei: Server, http: httpx.Client) -> None:
    """The longest text that `truncate: false` accepts, and a text with one token more."""
    fits = "word " * (MAX_TOKENS - 2)
    for truncate in (False, "NONE"):
        compare(embed(http, fits, truncate=truncate), embed(http, fits), bei.tolerance())
        reply = http.post("/embed", json={"inputs": fits + "word", "truncate": truncate})
        assert (reply.status_code, reply.json()["error_type"]) == (422, "Validation")
        assert f"{MAX_TOKENS} tokens" in reply.json()["error"]
        assert f"Given: {MAX_TOKENS + 1}" in reply.json()["error"]


def test_replies_say_what_computed_them_and_where_the_time_went(bei: Server, http: httpx.Client) -> None:
    reply = http.post("/embed", json={"inputs": ["añb", LONG]}, headers={"x-baseten-request-id": "a/1 b"})
    headers = reply.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == "a/1 b"
    assert headers["x-compute-type"] == f"cpu+{bei.get('/info').json()['model_dtype']}"
    assert int(headers["x-compute-characters"]) == 3 + len(LONG)
    tokens = len(http.post("/tokenize", json={"inputs": "añb"}).json()[0])
    assert int(headers["x-compute-tokens"]) == tokens + MAX_TOKENS
    parts = [float(headers[f"x-{name}-time"]) for name in ("tokenization", "queue", "inference")]
    assert float(headers["x-total-time"]) >= max(parts)
    assert min(parts) >= 0
    assert headers["x-compute-time"] == headers["x-total-time"]
    assert "." in headers["x-total-time"]


def test_every_reply_has_an_id_of_its_own(http: httpx.Client) -> None:
    replies = [http.post("/embed", json={"inputs": text}) for text in ("a", "a", "")]
    replies += [http.get(path) for path in ("/health", "/info", "/nowhere")]
    assert len({reply.headers["x-request-id"] for reply in replies}) == len(replies)


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_tokenize_gives_the_tokens_of_each_text(http: httpx.Client, add_special_tokens: bool) -> None:
    options = {"add_special_tokens": add_special_tokens}
    lists = http.post("/tokenize", json={"inputs": TEXTS, **options}).json()
    assert len(lists) == len(TEXTS)
    for text, tokens, ids in zip(TEXTS, lists, REFERENCE.ids, strict=True):
        given = [token["id"] for token in tokens]
        expected = ids.tolist() if add_special_tokens else ids.tolist()[1:-1]
        if len(ids) < MAX_TOKENS:  # tokenize cuts nothing
            assert given == expected
        plain = [token for token in tokens if not token["special"]]
        assert all(token["text"] == text[token["start"] : token["stop"]] for token in plain)
        assert all(before["start"] <= after["start"] for before, after in pairwise(plain))
        assert {(token["start"], token["stop"]) for token in tokens if token["special"]} <= {(None, None)}
        assert sum(token["special"] for token in tokens) == (2 if add_special_tokens else 0)


def test_tokenize_takes_one_text_too(http: httpx.Client) -> None:
    assert http.post("/tokenize", json={"inputs": "Hi"}).json() == [
        [
            {"id": CLS, "text": "[CLS]", "special": True, "start": None, "stop": None},
            {"id": 7632, "text": "Hi", "special": False, "start": 0, "stop": 2},
            {"id": SEP, "text": "[SEP]", "special": True, "start": None, "stop": None},
        ]
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"ids": [CLS, 7632, SEP]}, ["hi"]),
        ({"ids": [[CLS, 7632, SEP], [7632, 7632]]}, ["hi", "hi hi"]),
        ({"ids": [CLS, 7632, SEP], "skip_special_tokens": False}, ["[CLS] hi [SEP]"]),
    ],
)
def test_decode_gives_texts(http: httpx.Client, body: object, expected: list[str]) -> None:
    assert http.post("/decode", json=body).json() == expected


def test_decode_undoes_tokenize(http: httpx.Client) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    ids = [token["id"] for token in http.post("/tokenize", json={"inputs": text}).json()[0]]
    assert http.post("/decode", json={"ids": ids}).json() == [text]


def test_info_says_what_is_served_and_its_limits(http: httpx.Client) -> None:
    info = http.get("/info").json()
    assert (info["model_id"], info["model_type"]) == (NAME, {"embedding": {"pooling": "mean"}})
    assert (info["max_input_length"], info["dimensions"], info["auto_truncate"]) == (MAX_TOKENS, WIDTH, True)
    limits = [info[f"max_{name}"] for name in ("concurrent_requests", "batch_tokens", "client_batch_size")]
    assert limits == [2048, 16_384, 2048]
    assert {"model_sha", "model_dtype", "max_batch_requests", "tokenization_workers", "version"} <= info.keys()


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models_are_listed(http: httpx.Client, path: str) -> None:
    body = http.get(path).json()
    assert body["object"] == "list"
    assert [(model["id"], model["object"]) for model in body["data"]] == [(NAME, "model")]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openais_route_has_two_names(bei: Server, http: httpx.Client, path: str) -> None:
    reply = http.post(path, json={"input": TEXTS[:3]})
    compare(vectors(reply.json()), REFERENCE.vectors[:3], bei.tolerance())


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/ping"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health(http: httpx.Client, method: str, path: str) -> None:
    reply = http.request(method, path)
    assert reply.status_code == 200
    assert method == "HEAD" or path == "/health/live" or reply.json()["unix"] > 1e9


@pytest.mark.parametrize("path", ["/info", "/metrics", "/docs", "/openapi.json", "/v1/models"])
def test_head_is_get_without_the_body(http: httpx.Client, path: str) -> None:
    reply = http.head(path)
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["content-length"]) > 0
    assert reply.headers["content-type"] == http.get(path).headers["content-type"]


def test_metrics_have_teis_names_and_kinds(http: httpx.Client) -> None:
    assert http.post("/embed", json={"inputs": ""}).status_code == 400
    reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    kinds = dict(line.split()[2:4] for line in reply.text.splitlines() if line.startswith("# TYPE"))
    assert {name: kinds.get(name) for name in TEI_METRICS} == TEI_METRICS
    added = {"bei_engine_busy_seconds_total", "bei_padding_tokens_total", "bei_request_cancelled_total"}
    assert {name: kinds.get(name) for name in added} == dict.fromkeys(added, "counter")
    labels = {name: found for name, found, _ in samples(reply.text)}
    assert labels["te_request_count"].keys() == labels["te_request_success"].keys() == {"method"}
    assert labels["te_request_failure"].keys() == {"err"}


def test_metrics_count(bei: Server, http: httpx.Client) -> None:
    def counts() -> dict[tuple[str, str], float]:
        found = samples(http.get("/metrics").text)
        return {(name, labels.get("method") or labels.get("err") or ""): value for name, labels, value in found}

    before = counts()
    embed(http, "a")
    embed(http, ["a", "b"])
    embed(http, ["a", "b", "c"])
    http.post("/embed", json={"inputs": "a", "dimensions": 0})
    after = counts()
    rise = {key: after[key] - before.get(key, 0) for key in after}
    assert (rise["te_request_count", "single"], rise["te_request_count", "batch"]) == (1, 2)
    assert (rise["te_request_success", "single"], rise["te_request_success", "batch"]) == (1, 2)
    assert rise["te_request_failure", "validation"] == 1
    assert rise["te_request_input_length_count", ""] == rise["te_request_duration_count", ""] == 3
    assert rise["te_request_input_length_sum", ""] == rise["te_batch_next_tokens_sum", ""] == 6 * 3
    assert rise["te_batch_next_size_sum", ""] == 6
    assert rise["bei_engine_busy_seconds_total", ""] > 0
    assert after["te_queue_size", ""] == 0


@pytest.fixture(scope="module")
def document(_http: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = _http.get("/openapi.json").json()
    assert document == _http.get("/api-doc/openapi.json").json()
    return document


def test_openapi_describes_every_route(document: dict[str, Any], http: httpx.Client) -> None:
    assert document["openapi"].startswith("3.1")
    assert {"title", "version"} <= document["info"].keys()
    known = http.get("/nowhere").json()["error"].partition("known are ")[2].split(", ")
    assert set(known) == document["paths"].keys() | {"/openapi.json", "/api-doc/openapi.json", "/docs"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert all(reply["description"] for reply in operation["responses"].values())
            assert "200" in operation["responses"]
            assert ("requestBody" in operation) == (method == "post")
            assert http.request("OPTIONS", path).status_code == 405


def test_openapi_refers_to_nothing_that_it_lacks(document: dict[str, Any]) -> None:
    def references(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            node = list(node.values())
        for item in node if isinstance(node, list) else ():
            yield from references(item)

    found = set(references(document))
    assert found
    for reference in found:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
        assert node["type"] == "object"


def test_openapi_names_the_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    fields = {"truncate", "truncation_direction", "prompt_name", "dimensions"}
    assert fields | {"inputs", "normalize"} <= schemas["EmbedRequest"]["properties"].keys()
    openai_fields = {"input", "model", "encoding_format", "user", "input_type"}
    assert fields | openai_fields <= schemas["EmbeddingsRequest"]["properties"].keys()
    assert (schemas["EmbedRequest"]["required"], schemas["EmbeddingsRequest"]["required"]) == (["inputs"], ["input"])


def test_docs_is_a_page_that_needs_no_other_host(http: httpx.Client) -> None:
    reply = http.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert "openapi.json" in reply.text
    assert "://" not in reply.text
