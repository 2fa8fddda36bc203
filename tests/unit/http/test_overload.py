"""Requests that an overloaded server refuses before their bodies are decoded, and panics of the tokenizer."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tokenizers
from starlette.types import Scope

from bei_core.http import app as app_module
from bei_core.http.app import App
from bei_core.http.limits import MAX_REST_S
from bei_core.http.replies import UNCOUNTED_NUMBERS, Refusal, retry_after
from bei_core.http.server import pool as pool_module
from bei_core.http.server.connection import Connection, Phase
from bei_core.http.server.refused_heads import RefusedHeads
from bei_core.http.urgency import is_retry
from bei_core.models.kind import Kind
from bei_core.tasks import EncodeOptions, Text, Tokens
from tests.conftest import MINILM
from tests.fakes import SAFETY_S, WIDTH, at_rest, entered
from tests.unit.http.overloaded import (
    MakeServed,
    Served,
    assert_it_accepts_again,
    lined_up,
    occupied,
    set_rate,
)

SHAPES = [
    ("/embed", lambda reply: reply["error_type"]),
    ("/embed/", lambda reply: reply["error_type"]),
    ("/v1/embeddings", lambda reply: reply["error"]["type"]),
    ("/", lambda reply: reply["error"]["type"]),
]


@pytest.mark.parametrize(("path", "kind"), SHAPES, ids=[path for path, _ in SHAPES])
async def test_a_full_server_refuses_without_reading_the_body(
    make_served: MakeServed, path: str, kind: Callable[[dict[str, object]], str]
) -> None:
    served = await make_served(max_concurrent_requests=1)
    first = await occupied(served)
    for content in (b'{"inputs": [[5]]}', b"{no json", b"x" * 200_000):
        reply = await served.client.post(path, content=content, headers={"x-baseten-request-id": "mine"})
        assert (reply.status_code, kind(reply.json()), reply.headers["retry-after"]) == (429, "Overloaded", "1")
        assert reply.headers["x-request-id"] == "mine"
    assert (await served.client.get("/health/live")).status_code == 200
    text = (await served.client.get("/metrics")).text
    assert 'bei_request_refused_total{cause="concurrency"} 3.0' in text
    assert 'te_request_failure{err="overloaded"} 3.0' in text
    await assert_it_accepts_again(served, first)


async def test_a_refusal_keeps_the_connection_and_what_follows_on_it(make_served: MakeServed) -> None:
    served = await make_served(max_concurrent_requests=1)
    first = await occupied(served)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    body = json.dumps({"inputs": [[5]]}).encode()
    request = b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    writer.write(request * 3 + b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    replies = await asyncio.wait_for(reader.read(), SAFETY_S)
    writer.close()
    assert replies.count(b"HTTP/1.1 429 ") == 3
    assert replies.count(b"HTTP/1.1 200 ") == 1
    assert served.pool.budget.num_bytes == len(b'{"inputs":[[9]]}'), "that of the request that runs"
    served.engine.release()
    await first
    assert served.pool.budget.num_bytes == 0


async def test_the_event_loop_sleeps_once_after_requests_that_arrive_together(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await make_served(max_queue_wait_s=4.0, max_batch_tokens=48)
    set_rate(served, 48, 4.0)
    first, waiting = await lined_up(served, 48)
    slept: list[float] = []
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(sleep=slept.append))
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    for count in (1, 2):
        writer.write(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}" * 5)
        for _ in range(5):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SAFETY_S)
            size = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
            await asyncio.wait_for(reader.readexactly(int(size[16:])), SAFETY_S)
        await at_rest()
        assert slept == [MAX_REST_S] * count
    writer.close()
    served.engine.release()
    assert {(await task).status_code for task in (first, waiting)} == {200}


def parsed_heads(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[Scope]:
    """The requests whose heads are parsed from now on; a refusal stays valid for ever."""
    monkeypatch.setattr(app_module, "valid_s", lambda max_queue_wait_s: math.inf)
    parsed: list[Scope] = []

    def refused_early(scope: Scope) -> Refusal | None:
        parsed.append(scope)
        return served.app.refused_early(scope)

    monkeypatch.setattr(served.pool, "refused_early", refused_early)
    return parsed


async def test_a_repeated_head_is_refused_without_parsing_until_the_refusal_is_no_longer_valid(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await make_served(max_concurrent_requests=1)
    first, parsed = await occupied(served), parsed_heads(served, monkeypatch)
    replies = [await served.client.post("/embed", json={"inputs": [[5] * count]}) for count in (1, 2, 3)]
    assert len(parsed) == 1
    assert [(reply.status_code, reply.headers["retry-after"]) for reply in replies] == [(429, "1")] * 3
    assert len({reply.headers["retry-after-ms"] for reply in replies}) > 1
    assert len({reply.headers["x-request-id"] for reply in replies}) == 3
    for number in (1, 2):
        mine = {"x-baseten-request-id": "mine"}
        assert (await served.client.post("/embed", json={}, headers=mine)).headers["x-request-id"] == "mine"
        assert len(parsed) == 1 + number
    assert 'bei_request_refused_total{cause="concurrency"} 5.0' in (await served.client.get("/metrics")).text
    served.pool.refused_heads, served.app._refusals = RefusedHeads(), {}  # as after their time
    await assert_it_accepts_again(served, first)


async def test_a_repeated_head_of_a_client_with_a_connection_for_each_request_is_refused_without_parsing(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await make_served(max_concurrent_requests=1)
    first, parsed = await occupied(served), parsed_heads(served, monkeypatch)
    for version in (b"1.1\r\nhost: a\r\nconnection: close", b"1.0"):
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST /embed HTTP/%b\r\ncontent-length: 2\r\n\r\n{}" % version)
            reply = await asyncio.wait_for(reader.read(), SAFETY_S)
            writer.close()
            assert reply.startswith(b"HTTP/1.1 429 ")
            assert reply.count(b"\r\nconnection: close\r\n") == 1
    assert len(parsed) == 2, "one of each head"
    served.pool.refused_heads, served.app._refusals = RefusedHeads(), {}  # as after their time
    await assert_it_accepts_again(served, first)


async def test_of_two_models_one_that_a_route_can_choose_and_is_not_busy_keeps_it_open(make_served: MakeServed) -> None:
    one, two = [await make_served(max_concurrent_requests=1, served_model_name=name) for name in ("one", "two")]
    app = App(one.service, two.service)

    def is_refused(path: str) -> bool:
        return app.refused_early({"type": "http", "method": "POST", "path": path, "headers": []}) is not None

    first = await occupied(one)
    assert [is_refused(path) for path in ("/embed", "/rerank", "/")] == [False] * 3, "the body names the model"
    embedder = two.service.model
    two.service.model = replace(embedder, roles=frozenset({Kind.RERANKER}))
    assert [is_refused(path) for path in ("/embed", "/rerank", "/")] == [True, False, False]
    two.service.model = embedder
    second = await occupied(two)
    assert [is_refused(path) for path in ("/embed", "/rerank", "/")] == [True] * 3
    one.engine.release()
    two.engine.release()
    await asyncio.gather(first, second)
    app._refusals.clear()  # as after their time
    assert [is_refused(path) for path in ("/embed", "/rerank", "/")] == [False] * 3


async def test_refusals_that_the_client_does_not_read_do_not_fill_the_memory(make_served: MakeServed) -> None:
    served = await make_served(max_concurrent_requests=1)
    first = await occupied(served)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
    await at_rest()
    connections = [each for each in served.pool._connections if isinstance(each, Connection)]
    transport = next(each._transport for each in connections if each.phase is Phase.IDLE)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    count = 20_000
    writer.write(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}" * count)
    await at_rest()
    assert transport.get_write_buffer_size() < 200_000
    writer.write(b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    replies = await asyncio.wait_for(reader.read(), SAFETY_S)
    assert (replies.count(b"HTTP/1.1 429 "), replies.count(b"HTTP/1.1 200 ")) == (count, 1)
    writer.close()
    served.engine.release()
    assert (await first).status_code == 200


async def test_a_full_server_reports_a_wrong_key_or_priority_first(
    make_served: MakeServed,
) -> None:
    served = await make_served(max_concurrent_requests=1, api_key="secret")
    served.engine.hold()
    key = {"authorization": "Bearer secret"}
    first = asyncio.create_task(served.client.post("/embed", json={"inputs": [[9]]}, headers=key))
    await entered(served.engine)
    statuses = [
        (await served.client.post("/embed", json={"inputs": [[5]]}, headers=headers)).status_code
        for headers in ({}, key, {**key, "x-priority": "mine"})
    ]
    assert statuses == [401, 429, 422]
    served.engine.release()
    assert (await first).status_code == 200


async def test_a_long_queue_refuses_early_and_says_for_how_long(make_served: MakeServed) -> None:
    served = await make_served(max_queue_wait_s=14.0, max_batch_tokens=48)
    set_rate(served, 48, 4.0)
    first, *waiting = await lined_up(served, 48, 48)
    reply = await served.client.post("/embed", content=b"{no json")
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 8
    urgent = asyncio.create_task(served.client.post("/embed", json={"inputs": [[6]]}, headers={"x-priority": "high"}))
    while served.service._runner.num_items < 3:
        await asyncio.sleep(0.001)
    metrics = (await served.client.get("/metrics")).text
    assert 'bei_request_refused_total{cause="queue_wait"} 1.0' in metrics
    assert "bei_expected_wait_seconds 0.0" not in metrics
    served.engine.release()
    assert {(await task).status_code for task in (first, *waiting, urgent)} == {200}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("x-stainless-retry-count", "0", False),
        ("x-stainless-retry-count", "2", True),
        ("x-envoy-attempt-count", "1", False),
        ("x-envoy-attempt-count", "02", True),
        ("x-envoy-attempt-count", "0", False),
        ("x-stainless-retry-count", "-1", False),
        ("x-stainless-retry-count", "²", False),
        ("x-stainless-retry-count", "9" * 60_000, True),
    ],
)
def test_a_retry_is_known_by_what_clients_send(name: str, value: str, expected: bool) -> None:
    assert is_retry({name.encode(): value.encode("latin-1")}) is expected


async def test_under_overload_retries_beyond_their_budget_are_refused_and_first_attempts_are_not(
    make_served: MakeServed,
) -> None:
    served = await make_served(max_queue_wait_s=12.0, max_batch_tokens=48)
    set_rate(served, 48, 4.0)
    first, *waiting = await lined_up(served, 48)
    for _ in range(10):
        served.service._runner.admission._retries.accepted(is_retry=True)
    retry = {"x-stainless-retry-count": "1"}
    for number in (1, 2):
        reply = await served.client.post("/embed", json={"inputs": [[6]]}, headers=retry)
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 8
        text = (await served.client.get("/metrics")).text
        assert f'bei_request_refused_total{{cause="retry_budget"}} {number}.0' in text
    other = asyncio.create_task(served.client.post("/embed", json={"inputs": [[6]]}))
    while served.service._runner.num_items < 2:
        await asyncio.sleep(0.001)
    served.engine.release()
    assert {(await task).status_code for task in (first, *waiting, other)} == {200}


@pytest.mark.parametrize(("seconds", "longest"), [(1, 1.5), (10, 15), (50, 75), (60, 90)])
def test_clients_that_are_refused_together_do_not_come_back_together(seconds: int, longest: float) -> None:
    found = [retry_after(seconds) for _ in range(300)]
    waits = [int(headers["retry-after-ms"]) / 1e3 for headers in found]
    assert min(waits) >= seconds  # it is known that nothing is accepted before
    assert max(waits) <= longest
    assert len(set(waits)) > 100
    assert all(abs(float(headers["retry-after"]) - wait) <= 0.5 for headers, wait in zip(found, waits, strict=True))


async def test_a_deadline_counts_from_the_arrival_and_its_504_does_not_wait(make_served: MakeServed) -> None:
    served = await make_served()
    first = await occupied(served)
    late = await served.client.post("/embed", json={"inputs": [[5]]}, headers={"request-timeout-ms": "50"})
    assert (late.status_code, late.json()["error_type"]) == (504, "DeadlineExceeded")
    assert not first.done()
    served.engine.release()
    assert (await first).status_code == 200


async def test_a_504_does_not_wait_until_other_requests_are_tokenized(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, going_on, body = await make_served(), threading.Event(), {"inputs": "a " * 3000}
    tokenizer = served.service.tokenizer
    encode = tokenizer.encode_now

    def encode_now(texts: list[Text], how: EncodeOptions) -> list[Tokens]:
        assert going_on.wait(SAFETY_S)
        return encode(texts, how)

    monkeypatch.setattr(tokenizer, "encode_now", encode_now)
    first = asyncio.create_task(served.client.post("/embed", json=body))
    late = await served.client.post("/embed", json=body, headers={"request-timeout-ms": "50"})
    assert (late.status_code, late.json()["error_type"]) == (504, "DeadlineExceeded")
    assert not first.done()
    going_on.set()
    assert (await first).status_code == 200


@pytest.mark.parametrize(("path", "num_bytes"), [("/embed", 4 * WIDTH), ("/embed_all", 4 * 2)])
async def test_a_large_result_is_counted_before_it_is_computed_and_else_refused(
    make_served: MakeServed, path: str, num_bytes: int
) -> None:
    """20 requests of `/embed_all` held 77 MB of rows each, which counted nowhere until the last was computed."""
    count, limit = 1000, 400_000
    result = num_bytes * count
    served = await make_served(max_body_bytes_in_flight=limit, max_batch_tokens=48)
    served.engine.hold()
    body = {"inputs": [[5]] * count}
    tasks = [asyncio.create_task(served.client.post(path, json=body)) for _ in range(1 + limit // result)]
    async with asyncio.timeout(SAFETY_S):
        service = served.service
        while service._num_unqueued or sum(task.done() for task in tasks) + service._num_requests < len(tasks):
            await asyncio.sleep(0.001)
    assert limit - 5 * result < served.pool.budget.num_bytes <= limit
    num_refused = sum(task.done() for task in tasks)
    assert num_refused
    served.engine.release()
    statuses = [(await task).status_code for task in tasks]
    assert statuses.count(429) == num_refused, "what is accepted is answered"
    assert statuses.count(200) == len(tasks) - num_refused
    assert served.pool.budget.num_bytes == 0


async def test_a_reply_that_nothing_can_hold_is_a_429_and_no_closed_connection(make_served: MakeServed) -> None:
    served = await make_served(max_body_bytes_in_flight=20_000)
    small, large = ([[5]] * (each * UNCOUNTED_NUMBERS // WIDTH) for each in (1, 2))
    for inputs, status in ((small, 200), (large, 429), (small, 200)):
        reply = await served.client.post("/embed", json={"inputs": inputs})
        assert reply.status_code == status, reply.text
    assert int(reply.headers["content-length"]) < 20_000
    assert served.pool.budget.num_bytes == 0


# --- Panics of the tokenizer


def panic(*_: object, **__: object) -> None:
    """Panics in Rust, as the library does on some inputs."""
    encoding = tokenizers.Tokenizer.from_file(str(MINILM / "tokenizer.json")).encode("a b c d e f")
    encoding.truncate(2, stride=5)


class Panicking:
    """A tokenizer whose calls panic."""

    encode_batch = encode_batch_fast = decode = staticmethod(panic)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": "text"}, 422, "Tokenizer"),
        ("/embed", {"inputs": "text " * 2000}, 422, "Tokenizer"),
        ("/tokenize", {"inputs": "text"}, 422, "Tokenizer"),
        ("/decode", {"ids": [[5]]}, 424, "Backend"),
    ],
    ids=["short", "on a worker", "tokenize", "decode"],
)
async def test_a_panic_of_the_tokenizer_is_an_error_of_that_request_alone(
    make_served: MakeServed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: dict[str, object],
    status: int,
    kind: str,
) -> None:
    caplog.set_level(logging.CRITICAL)
    served = await make_served()
    with monkeypatch.context() as patch:
        for user in (served.service.tokenizer, served.service.tokenizer._words):
            patch.setattr(user, "_tokenizer", Panicking())
        for _ in range(3):
            reply = await served.client.post(path, json=body)
            assert (reply.status_code, reply.json()["error_type"]) == (status, kind)
    assert f'te_request_failure{{err="{kind.lower()}"}} 3.0' in (await served.client.get("/metrics")).text
    await at_rest()
    for inputs in ("text", "text " * 2000):
        assert (await served.client.post("/embed", json={"inputs": inputs})).status_code == 200
