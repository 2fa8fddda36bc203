"""This repository's Truss, served by Truss's own server, and its clients."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from bei_core.tasks import Rows
from tests.collector import Collector
from tests.conftest import MINILM
from tests.e2e.environments import ROOT
from tests.e2e.server import SHORT, samples
from tests.e2e.truss_server import Server, Truss, difference, lay_out
from tests.fakes import SAFETY_S
from tests.golden.cases import load_minilm
from tests.golden.tolerance import BF16, compare

REFERENCE = load_minilm()
TEXTS = list(REFERENCE.texts)
PREDICT = "/v1/models/model:predict"
LONG = "word " * 300  # of a model that takes 256 tokens
SLOW = [LONG] * 64  # about half a second of work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("truss")


@pytest.fixture(scope="module")
def truss(folder: Path) -> Truss:
    if not MINILM.is_dir():
        pytest.fail(f"{MINILM} is missing; run `make install`")
    return lay_out(folder, {"model_id": str(MINILM), "cache_dir": str(folder / "cache")})


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def started(truss: Truss, folder: Path, collector: Collector) -> Iterator[Server]:
    runtime = {"BEI_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with Server(truss, folder / "server", runtime) as server:
        yield server


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    """The server; pytest shows what it wrote during a test that fails."""
    already = len(started.log)
    yield started
    print(started.log[already:])


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=SAFETY_S) as client:
        yield client


def post(server: Server, path: str, body: object) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=SAFETY_S)


def metrics(server: Server) -> dict[str, float]:
    """The samples of Truss's `/metrics`, summed over their labels."""
    found: dict[str, float] = {}
    text = httpx.get(f"{server.url}/metrics", follow_redirects=True).text
    for name, _, value in samples(text):
        found[name] = found.get(name, 0) + value
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + SAFETY_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def vectors(body: dict[str, Any]) -> Rows:
    return np.array([item["embedding"] for item in body["data"]], np.float32)


def test_the_upload_is_small_and_holds_what_serves(truss: Truss) -> None:
    assert {path.name for path in truss.upload.iterdir()} == {"config.yaml", "data", "model", "packages"}
    assert sum(path.stat().st_size for path in truss.upload.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize(("name", "place"), [("packages", "packages"), ("model", "app/model"), ("data", "app/data")])
def test_the_image_has_all_of_it(truss: Truss, name: str, place: str) -> None:
    def tree(folder: Path) -> set[str]:
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return {path for path in found if not re.search(r"__pycache__|\.egg-info", path)}

    assert tree(truss.root / place) == tree(ROOT / name)


def test_the_server_has_what_the_image_would_install_and_no_more(truss: Truss) -> None:
    assert not difference(truss), "run scripts/test_envs.sh lock truss, then scripts/test_envs.sh"


@pytest.mark.parametrize(
    ("options", "chosen"),
    [({}, [*range(0, len(TEXTS), 5)]), ({"encoding_format": "float"}, SHORT)],
    ids=["as base64", "as numbers"],
)
def test_the_openai_client_gets_the_models_vectors(
    client: openai.OpenAI, options: dict[str, Any], chosen: list[int]
) -> None:
    reply = client.embeddings.create(model="all-MiniLM-L6-v2", input=[TEXTS[index] for index in chosen], **options)
    compare(np.array([item.embedding for item in reply.data], np.float32), REFERENCE.vectors[chosen], BF16)
    assert [item.index for item in reply.data] == list(range(len(chosen)))
    assert reply.model == "all-MiniLM-L6-v2"
    assert reply.usage.prompt_tokens == sum(len(REFERENCE.ids[index]) for index in chosen)


def test_predict_takes_an_openai_body(server: Server) -> None:
    reply = post(server, PREDICT, {"model": "m", "input": TEXTS[:20]})
    assert reply.status_code == 200
    compare(vectors(reply.json()), REFERENCE.vectors[:20], BF16)
    assert reply.json()["model"] == "m"


def test_predict_takes_a_tei_body(server: Server) -> None:
    reply = post(server, PREDICT, {"inputs": TEXTS[:20]})
    assert reply.status_code == 200
    compare(np.array(reply.json(), np.float32), REFERENCE.vectors[:20], BF16)


def test_headers_pass_through_truss(server: Server) -> None:
    headers = {"x-baseten-request-id": "mine"}
    reply = httpx.post(server.url + PREDICT, json={"inputs": "a"}, headers=headers, timeout=SAFETY_S)
    assert reply.headers["x-request-id"] == "mine"
    assert reply.headers["x-compute-type"].startswith("cpu+")
    assert float(reply.headers["x-total-time"]) >= float(reply.headers["x-inference-time"]) > 0
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/v1/embeddings", PREDICT])
@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        (b'{"input": ""}', 400, "Empty", "empty"),
        (b'{"input": []}', 400, "Empty", "empty"),
        (b'{"input": "a"', 400, "Validation", "not JSON"),
        (b"", 400, "Validation", "not JSON"),
        (b'{"input": "\xff"}', 400, "Validation", "not JSON"),
        (b'{"input": 5}', 422, "Validation", "Expected"),
        (b'["a"]', 422, "Validation", "object"),
        (b'{"text": "a"}', 422, "Validation", "`input`"),
        (b'{"input": "a", "dimensions": 100000}', 422, "Validation", "dimensions"),
        (b'{"input": "%s", "truncate": false}' % LONG.encode(), 422, "Validation", "256 tokens"),
    ],
)
def test_openai_shaped_errors(server: Server, path: str, body: bytes, status: int, kind: str, said: str) -> None:
    reply = httpx.post(server.url + path, content=body, timeout=SAFETY_S)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (status, kind, None)
    assert said in error["message"]
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": {"a": 1}}, 422, "Validation"),
        ({"inputs": LONG, "truncate": False}, 422, "Validation"),
    ],
)
def test_tei_shaped_errors(server: Server, body: dict[str, Any], status: int, kind: str) -> None:
    reply = post(server, PREDICT, body)
    assert (reply.status_code, reply.json()["error_type"]) == (status, kind)
    assert isinstance(reply.json()["error"], str)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"input": ""}, openai.BadRequestError),
        ({"input": 5}, openai.UnprocessableEntityError),
        ({"input": LONG, "extra_body": {"truncate": False}}, openai.UnprocessableEntityError),
    ],
    ids=["empty", "wrong type", "too long"],
)
def test_the_openai_client_raises_its_own(
    client: openai.OpenAI, options: dict[str, Any], expected: type[openai.APIStatusError]
) -> None:
    with pytest.raises(expected) as raised:
        client.embeddings.create(model="m", **options)
    assert raised.value.type == ("Empty" if expected is openai.BadRequestError else "Validation")


def test_64_at_once_each_get_their_own(server: Server) -> None:
    chosen = [SHORT[index % len(SHORT)] for index in range(256)]
    with httpx.Client(base_url=server.url, timeout=SAFETY_S, limits=httpx.Limits(max_connections=64)) as client:

        def ask(index: int) -> httpx.Response:
            return client.post(PREDICT if index % 2 else "/v1/embeddings", json={"input": TEXTS[index]})

        with ThreadPoolExecutor(64) as pool:
            replies = list(pool.map(ask, chosen))
    assert {reply.status_code for reply in replies} == {200}
    compare(np.concatenate([vectors(reply.json()) for reply in replies]), REFERENCE.vectors[chosen], BF16)


def test_metrics_are_on_trusss_own_page(server: Server) -> None:
    before = metrics(server)
    assert post(server, "/v1/embeddings", {"input": "a"}).status_code == 200
    assert post(server, "/v1/embeddings", {"input": ""}).status_code == 400
    after = metrics(server)
    for name in ("te_request_count", "te_request_success", "te_request_failure", "te_request_duration_count"):
        assert after[name] >= before.get(name, 0) + 1, name
    assert after["te_batch_next_size_count"] > 0
    assert "te_queue_size" in after


@pytest.mark.parametrize("path", ["/v1/embeddings", PREDICT, "/embeddings"])
def test_a_caller_who_leaves_is_not_computed_for(server: Server, path: str) -> None:
    """The last request is for a route that Truss's own server does not have."""
    before = metrics(server)
    body = httpx.Request("POST", server.url, json={"input": [LONG] * 1024}).content
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_until(lambda: metrics(server)["te_request_count"] > before["te_request_count"])
    wait_until(lambda: metrics(server)["bei_request_cancelled_total"] > before["bei_request_cancelled_total"])
    assert post(server, path, {"input": "a"}).status_code == 200


def test_every_way_to_the_model_is_traced(server: Server, collector: Collector) -> None:
    """By the SDK that Truss's server brings, and apart from Truss's own spans."""
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs"), (PREDICT, "inputs")):
        assert httpx.post(server.url + path, json={field: "a"}, headers=headers, timeout=SAFETY_S).status_code == 200

    def ours() -> list[tuple[str, str]]:
        spans = [span for span in collector.spans if span.trace_id == "0af7651916cd43dd8448eb211c80319c"]
        return sorted((span.name, span.parent_id) for span in spans)

    wait_until(lambda: len(ours()) == 3)
    assert ours() == [(f"POST {route}", "b7ad6b7169203331") for route in ("/embed", "/embed", "/v1/embeddings")]


def test_requests_leave_no_line_in_the_log(server: Server) -> None:
    assert post(server, "/v1/embeddings", {"input": "a"}).status_code == 200
    assert "/v1/embeddings" not in server.log
    assert "Handled request" not in server.log


@pytest.mark.long
def test_what_was_accepted_before_sigterm_is_answered(truss: Truss, started: Server, folder: Path) -> None:
    """A server of its own, which starts from the engine that the other one built."""
    paths = ("/v1/embeddings", "/embeddings") * 2
    patient = {"BEI_MAX_QUEUE_WAIT_S": "1000"}  # also on a busy machine
    with Server(truss, folder / "drained", patient) as server, ThreadPoolExecutor(4) as pool:
        assert "engine built" in started.log
        assert "engine built" not in server.log
        asked = [pool.submit(post, server, path, {"input": SLOW}) for path in paths]
        wait_until(lambda: metrics(server).get("te_request_count", 0) >= len(asked))
        server.terminate()
        assert not all(reply.done() for reply in asked), "too fast a machine: give it more to do"
        for reply in asked:
            assert reply.result().status_code == 200, server.log
            assert len(reply.result().json()["data"]) == len(SLOW)
        assert server.wait() in {0, -signal.SIGTERM}  # uvicorn ends itself by the signal it got
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)
