"""Every route on Truss's own server: the statuses, bodies and headers of `bei serve`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import requests
from baseten_performance_client import PerformanceClient
from starlette.types import ASGIApp

from bei_core.config.settings import Settings
from bei_core.http.app import make_app
from bei_core.http.routes import ROUTES
from bei_core.serving.service import Service
from tests.conftest import MINILM
from tests.e2e.truss_server import Server, lay_out
from tests.fakes import SAFETY_S
from tests.golden.cases import GOLDEN

MODELS = {
    "embedder": MINILM,
    "ranker": GOLDEN / "bert-rerank-pad7",
    "topics": GOLDEN / "bert-topics-bf16-sharded",
    "tagger": GOLDEN / "bert-ner",
    "splade": GOLDEN / "splade-distilbert-modules",
}
TEXTS = ["a cat sat", "the dog ran home", "rain"]
RANK = {"query": "which animal", "texts": TEXTS}
COHERE = {"query": "which animal", "documents": TEXTS, "top_n": 2}

# What is added to the table of routes in Truss, and a body that makes each answer.
ANSWERED: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/embeddings", {"input": TEXTS}),
    ("POST", "/embeddings", {"input": TEXTS}),
    ("POST", "/embed", {"inputs": TEXTS}),
    ("POST", "/embed_all", {"inputs": TEXTS[:1]}),
    ("POST", "/embed_sparse", {"inputs": TEXTS}),
    ("POST", "/similarity", {"inputs": {"source_sentence": "a", "sentences": TEXTS}}),
    ("POST", "/predict", {"inputs": [[text] for text in TEXTS], "model": "topics"}),
    ("POST", "/predict_tokens", {"inputs": TEXTS}),
    ("POST", "/classify", {"input": TEXTS, "model": "topics"}),
    ("POST", "/rerank", RANK),
    ("POST", "/v1/rerank", COHERE),
    ("POST", "/v2/rerank", COHERE),
    ("POST", "/infinity/rerank", COHERE),
    ("POST", "/voyage/v1/rerank", COHERE),
    ("POST", "/elastic/rerank", COHERE),
    ("POST", "/weaviate/rerank", {"query": "which animal", "documents": TEXTS}),
    ("POST", "/v1/reranking", {"query": "which animal", "input": TEXTS}),
    ("POST", "/v1/ranking", {"query": {"text": "which animal"}, "passages": [{"text": text} for text in TEXTS]}),
    ("POST", "/v1/retrieval/any/model/reranking", {"query": {"text": "a"}, "passages": [{"text": "b"}]}),
    ("POST", "/score", {"text_1": "which animal", "text_2": TEXTS}),
    ("POST", "/v1/score", {"queries": TEXTS, "documents": TEXTS}),
    ("POST", "/pooling", {"input": TEXTS}),
    ("POST", "/vllm/classify", {"input": TEXTS, "model": "topics"}),
    ("POST", "/vertex", {"instances": [{"inputs": "a"}]}),
    ("POST", "/", {"inputs": TEXTS}),
    ("POST", "/invocations", {"inputs": TEXTS}),
    ("POST", "/tokenize", {"inputs": TEXTS}),
    ("POST", "/decode", {"ids": [101, 102]}),
    ("POST", "/detokenize", {"tokens": [101, 102]}),
    ("POST", "/v1/embed", {"texts": TEXTS}),
    ("POST", "/v2/embed", {"texts": TEXTS, "embedding_types": ["float"]}),
    ("POST", "/api/embed", {"input": TEXTS, "model": "embedder"}),
    ("POST", "/api/embeddings", {"prompt": TEXTS[0], "model": "embedder"}),
    ("GET", "/api/tags", None),
    ("POST", "/api/show", {"model": "embedder"}),
    ("GET", "/api/version", None),
    ("POST", "/vectors", {"text": TEXTS[0], "config": {"pooling_strategy": "masked_mean"}}),
    ("POST", "/weaviate/vectors", {"texts": TEXTS}),
    ("GET", "/meta", None),
    ("GET", "/weaviate/meta", None),
    ("GET", "/.well-known/ready", None),
    ("GET", "/weaviate/.well-known/ready", None),
    ("GET", "/.well-known/live", None),
    ("GET", "/weaviate/.well-known/live", None),
    ("GET", "/models/embedder", None),
    ("GET", "/v1/models", None),
    ("GET", "/models", None),
    ("GET", "/info", None),
    ("GET", "/health", None),
    ("GET", "/health/ready", None),
    ("GET", "/health/live", None),
    ("GET", "/api-doc/openapi.json", None),
    ("GET", "/docs", None),
]
REFUSED: list[tuple[str, str, Any]] = [
    ("POST", "/v1/embeddings", {"input": []}),
    ("POST", "/embed", {"inputs": []}),
    ("POST", "/embed", {"inputs": 5}),
    ("POST", "/embed", {"inputs": "a", "model": "unknown"}),
    ("POST", "/embed", {"inputs": "a", "model": "ranker"}),
    ("POST", "/v2/rerank", {"query": "a"}),
    ("POST", "/rerank", {"query": "a", "texts": [""]}),
    ("POST", "/nowhere", {"inputs": "a"}),
    ("GET", "/rerank", None),
    ("GET", "/v1/embeddings", None),
    ("DELETE", "/health", None),
]
# Truss's own, which come first.
TRUSSS = {"/ping", "/v1/models/{id}"}
VOLATILE = {
    "id",
    "created",
    "unix",
    "version",
    "total_duration",
}  # the image has bei_core as a folder, which has no version


@pytest.fixture(scope="module")
def bei() -> dict[str, Any]:
    return {"models": [f"{name}={path}" for name, path in MODELS.items()], "dtype": "float32"}


@pytest.fixture(scope="module")
def truss(tmp_path_factory: pytest.TempPathFactory, bei: dict[str, Any]) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("routes")
    with Server(lay_out(folder, {**bei, "cache_dir": str(folder / "cache")}), folder / "server") as server:
        yield server.url
        print(server.log)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, bei: dict[str, Any]) -> Iterator[ASGIApp]:
    config = {"model_metadata": {"bei": {**bei, "cache_dir": str(tmp_path_factory.mktemp("cache"))}}}
    services = Service.open_all(Settings.from_truss_config(config))
    yield make_app(*services)[1]
    for service in services:
        service.close()


async def both(
    truss: str, app: ASGIApp, method: str, path: str, body: object, **headers: str
) -> tuple[httpx.Response, httpx.Response]:
    """The replies of Truss's server and of `bei serve`'s application."""
    async with (
        httpx.AsyncClient(base_url=truss, timeout=SAFETY_S) as one,
        httpx.AsyncClient(base_url="http://bei", transport=httpx.ASGITransport(app), timeout=SAFETY_S) as other,
    ):
        asked: dict[str, Any] = {} if body is None else {"json": body}
        return (
            await one.request(method, path, headers=headers, **asked),
            await other.request(method, path, headers=headers, **asked),
        )


def assert_alike(one: Any, other: Any) -> None:  # noqa: ANN401 - JSON
    """Check that two replies are equal, except the last digits of numbers and fields that always differ."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in other.keys() - VOLATILE:
            assert_alike(one[name], other[name])
    elif isinstance(other, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_alike(left, right)
    elif isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        assert one == other


def test_the_table_leaves_no_route_out() -> None:
    asked = {path for _, path, _ in ANSWERED} | TRUSSS | {"/metrics"}
    assert {route.path for route in ROUTES} <= asked | {"/models/{id}", "/v1/retrieval/{model}/reranking"}


@pytest.mark.parametrize(("method", "path", "body"), [*ANSWERED, *REFUSED])
@pytest.mark.long
async def test_a_reply_is_that_of_bei_serve(truss: str, app: ASGIApp, method: str, path: str, body: object) -> None:
    one, other = await both(truss, app, method, path, body, **{"x-baseten-request-id": "mine"})
    assert (one.status_code, one.headers["x-request-id"]) == (other.status_code, "mine")
    assert one.status_code == 200 or (method, path, body) in REFUSED
    added = {"date", "server"}  # by uvicorn
    assert one.headers.keys() - added == other.headers.keys()
    kept = {"content-type", "x-compute-type", "x-compute-tokens", "x-compute-characters", "allow"}
    assert {name: one.headers.get(name) for name in kept} == {name: other.headers.get(name) for name in kept}
    if one.headers.get("content-type") == "application/json":
        assert_alike(one.json(), other.json())
    else:
        assert one.content == other.content


@pytest.mark.parametrize("headers", [{"accept": "application/msgpack"}, {"accept-encoding": "zstd"}], ids=str)
@pytest.mark.long
async def test_formats_and_codings(truss: str, app: ASGIApp, headers: dict[str, str]) -> None:
    one, other = await both(truss, app, "POST", "/embed_all", {"inputs": TEXTS}, **headers)
    for name in ("content-type", "content-encoding"):
        assert one.headers.get(name) == other.headers.get(name)
    assert abs(len(one.content) - len(other.content)) < 0.05 * len(other.content)


@pytest.mark.long
async def test_a_deadline_that_has_passed(truss: str, app: ASGIApp) -> None:
    one, other = await both(truss, app, "POST", "/embed", {"inputs": "a"}, **{"request-deadline-ms": "1"})
    assert (one.status_code, one.json()) == (other.status_code, other.json())
    assert one.status_code == 504


@pytest.mark.long
def test_metrics_need_no_redirect(truss: str) -> None:
    """A redirect would lose the part of Baseten's address before `/metrics`."""
    reply = httpx.get(f"{truss}/metrics")
    assert reply.status_code == 200
    assert "te_request_count" in reply.text


@pytest.mark.long
def test_trusss_own_routes_are_as_before(truss: str) -> None:
    assert httpx.get(truss).json() is True
    assert httpx.get(f"{truss}/v1/models/model").json() == {}
    assert httpx.get(f"{truss}/openapi.json").json()["info"]["title"] == "Baseten Inference Server"
    assert httpx.post(f"{truss}/v1/completions", json={}).headers["x-baseten-error-code"] == "700"


@pytest.mark.long
def test_basetens_client_finds_all_of_its_routes(truss: str) -> None:
    client = PerformanceClient(base_url=truss, api_key="any")
    ranked = client.rerank(query="which animal", texts=TEXTS, model="ranker", truncate=True)
    labelled = client.classify(inputs=TEXTS, model="topics", truncate=True)
    embedded = client.embed(input=TEXTS, model="embedder")
    assert sorted(item.index for item in ranked.data) == [0, 1, 2]
    assert len(labelled.data) == len(TEXTS)
    assert embedded.numpy().shape == (3, 384)


@pytest.mark.long
def test_the_references_own_snippet(truss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", "any")
    headers = {"Authorization": f"Api-Key {os.environ['BASETEN_API_KEY']}"}
    body = {"inputs": "query: a \ndocument: b", "raw_scores": True}
    found = requests.post(headers=headers, url=f"{truss}/predict", json=body, timeout=SAFETY_S).json()
    assert len(found) == 1
    assert np.isfinite(found[0]["score"])
