"""The application with a fake engine: replies when the engine fails, hangs or is overloaded."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from starlette.types import Message

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.http.app import App, make_app
from bei_core.http.bodies import INLINE_BODY_BYTES
from bei_core.models.spec import read_spec
from bei_core.serving.runner import Runner
from bei_core.serving.service import Service
from tests.fakes import SAFETY_S, Clock, FakeEngine, at_rest, entered, rows_of, tokens_of, watched
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
BAD = 4  # [MASK]: only token ids that are sent hold it
HELD = [9]  # what keeps the engine busy while a test sends the rest

both = pytest.mark.parametrize(("path", "field"), [("/embed", "inputs"), ("/v1/embeddings", "input")])


@dataclass
class Served:
    """An application with its engine and its client."""

    app: App
    service: Service
    engine: FakeEngine
    client: httpx.AsyncClient

    def send(self, ids: object, *, path: str = "/embed", **headers: str) -> asyncio.Task[httpx.Response]:
        """The reply to a request of token ids, once there is one."""
        body = {"input" if path.startswith("/v1") else "inputs": ids, "normalize": False}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return asyncio.create_task(self.client.post(path, json=body, headers=named))

    async def occupied(self) -> asyncio.Task[httpx.Response]:
        """A request that keeps the engine busy until it is released."""
        self.engine.hold()
        sent = self.send(HELD)
        await entered(self.engine)
        return sent

    async def status(self, path: str) -> int:
        """Of a GET."""
        return (await self.client.get(path)).status_code


MakeServed = Callable[..., Awaitable[Served]]


@pytest.fixture
async def make_served() -> AsyncIterator[MakeServed]:
    """Starts applications, past their warm-up, and closes them."""
    async with AsyncExitStack() as stack:

        async def make(engine: FakeEngine | None = None, **flags: object) -> Served:
            engine = engine or FakeEngine(max_seq_len=48)
            spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
            manifest = Manifest(
                engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32
            )
            opened = Opened(engine, spec, FOLDER / "tokenizer.json", manifest)
            service = Service(opened, Settings.load({"model_id": "owner/name", **flags}, {}))
            service.start()
            stack.callback(service.close, SAFETY_S)
            stack.callback(engine.release)
            engine.batches.clear()
            while engine.entered.acquire(blocking=False):
                pass
            app, asgi = make_app(service)
            transport = httpx.ASGITransport(app=asgi)
            client = httpx.AsyncClient(transport=transport, base_url="http://a", timeout=SAFETY_S)
            return Served(app, service, engine, await stack.enter_async_context(client))

        yield make


async def all_of(*sent: asyncio.Task[httpx.Response]) -> list[httpx.Response]:
    return await asyncio.wait_for(asyncio.gather(*sent), SAFETY_S)


def is_row_of(reply: httpx.Response, *ids: int) -> bool:
    return np.array_equal(np.array(reply.json(), np.float32), rows_of([tokens_of(*ids)]))


@pytest.mark.parametrize("fault", [{"raises_on": [BAD]}, {"nan_on": [BAD]}], ids=["raises", "gives NaN"])
async def test_only_the_item_at_fault_fails(
    make_served: MakeServed, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "bei_core.serving.runner")
    served = await make_served(FakeEngine(max_seq_len=48, **fault))
    first = await served.occupied()
    sent = [served.send([5]), served.send([BAD]), served.send([6]), served.send([[7], [BAD]]), served.send([7])]
    await at_rest()
    served.engine.release()
    replies = await all_of(first, *sent)
    assert [reply.status_code for reply in replies] == [200, 200, 424, 200, 424, 200]
    for reply, ids in zip(replies, (9, 5, None, 6, None, 7), strict=True):
        assert ids is None or is_row_of(reply, ids)
    assert {reply.json()["error_type"] for reply in replies if reply.status_code == 424} == {"Backend"}
    assert await served.status("/health") == 200


async def test_a_batch_that_fails_once_is_answered(make_served: MakeServed) -> None:
    served = await make_served()
    first = await served.occupied()
    sent = [served.send([5]), served.send([6])]
    await at_rest()
    served.engine.num_failures = 2  # the batch of the first request, alone in it, and that of the other two
    served.engine.release()
    replies = await all_of(first, *sent)
    assert [reply.status_code for reply in replies] == [424, 200, 200]
    assert is_row_of(replies[1], 5)
    assert is_row_of(replies[2], 6)


@both
async def test_an_engine_fault_keeps_its_details_to_the_log(
    make_served: MakeServed, caplog: pytest.LogCaptureFixture, path: str, field: str
) -> None:
    served = await make_served(FakeEngine(max_seq_len=48, raises_on=[BAD]))
    (reply,) = await all_of(served.send([BAD], path=path))
    assert reply.status_code == 424
    assert "ids" not in reply.text
    assert any(record.exc_info and "ids [4]" in str(record.exc_info[1]) for record in caplog.records)


@both
async def test_a_bug_in_the_server_is_not_a_500(
    make_served: MakeServed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    field: str,
) -> None:
    async def run(*_: object, **__: object) -> None:
        raise KeyError("a secret")

    served = await make_served()
    monkeypatch.setattr(served.service, "run", run)
    (reply,) = await all_of(served.send([5], path=path))
    assert reply.status_code == 424, "Baseten's client sends it again for any 5xx"
    assert "secret" not in reply.text
    request_id = reply.headers["x-request-id"]
    assert f"this is a bug: POST {path!r} failed (request {request_id})" in caplog.messages


async def test_after_a_hang_health_reports_it_and_no_request_waits(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("bei_core.serving.service.Runner", partial(Runner, hang_s=120.0, clock=clock))
    served = await make_served()
    stuck = await served.occupied()
    waiting = served.send([5])
    await at_rest()
    runner = served.service._runner
    assert watched(runner, clock, 119) is None
    assert not stuck.done()
    assert await served.status("/health/live") == 200
    assert watched(runner, clock, 2)
    assert [await served.status(path) for path in ("/health", "/ping", "/health/ready")] == [503] * 3
    assert await served.status("/health/live") == 200
    replies = await all_of(stuck, waiting, served.send([6]))
    assert [reply.status_code for reply in replies] == [424, 503, 503]  # held, waiting, new
    assert "120 s" in replies[0].text
    served.engine.release()
    assert await served.status("/health") == 503, "what hung once is to be replaced"


async def test_more_requests_than_are_allowed_are_refused(make_served: MakeServed) -> None:
    served = await make_served(max_concurrent_requests=2)
    first = await served.occupied()
    second = served.send([5])
    await at_rest()
    for path in ("/embed", "/v1/embeddings"):
        (refused,) = await all_of(served.send([6], path=path))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert await served.status("/health/live") == 200
    served.engine.release()
    replies = await all_of(first, second)
    assert [reply.status_code for reply in [*replies, *await all_of(served.send([6]))]] == [200] * 3
    assert [6] in served.engine.seen
    assert len(served.engine.seen) == 3


async def test_more_tokens_than_may_wait_are_refused(make_served: MakeServed) -> None:
    served = await make_served(max_queue_tokens=10)
    first = await served.occupied()
    fits = served.send([5] * 10)
    await at_rest()
    (refused,) = await all_of(served.send([6]))
    assert (refused.status_code, refused.json()["error_type"]) == (429, "Overloaded")
    served.engine.release()
    replies = await all_of(first, fits)
    assert [reply.status_code for reply in [*replies, *await all_of(served.send([6]))]] == [200] * 3


async def test_a_draining_server_answers_and_says_goodbye(make_served: MakeServed) -> None:
    served = await make_served()
    first = await served.occupied()
    served.app.draining = True
    served.service.drain()
    health = await served.client.get("/health")
    assert (health.status_code, health.json()["error_type"]) == (503, "Unhealthy")
    assert health.headers["connection"] == "close"
    late = served.send([5])
    served.engine.release()
    for reply in await all_of(first, late):
        assert (reply.status_code, reply.headers["connection"]) == (200, "close")


@both
async def test_a_closed_server_answers_nothing_any_more(make_served: MakeServed, path: str, field: str) -> None:
    served = await make_served()
    served.service.close(SAFETY_S)
    (reply,) = await all_of(served.send([5], path=path))
    assert reply.status_code == 503
    assert await served.status("/health") == 503


async def test_a_request_past_its_deadline_is_not_run(make_served: MakeServed) -> None:
    served = await make_served()
    first = await served.occupied()
    late = [served.send([5], request_timeout_ms="0"), served.send([6], request_deadline_ms="1000")]
    in_time = served.send([7], request_timeout_ms="1e9", request_deadline_ms="1e15")
    both_given = served.send([8], request_timeout_ms="0", request_deadline_ms="1e15")
    await at_rest()
    served.engine.release()
    replies = await all_of(first, *late, in_time, both_given)
    assert [reply.status_code for reply in replies] == [200, 504, 504, 200, 504]
    assert served.engine.seen == [HELD, [7]]


async def test_high_priority_items_run_first(make_served: MakeServed) -> None:
    served = await make_served(max_batch_requests=1)
    first = await served.occupied()
    sent = [served.send([5], x_priority="low"), served.send([6]), served.send([7], x_priority="HIGH")]
    await at_rest()
    served.engine.release()
    await all_of(first, *sent)
    assert served.engine.seen == [HELD, [7], [6], [5]]


@pytest.mark.parametrize(("cut_off", "status"), [(False, 499), (True, 503)])
async def test_a_caller_who_leaves_is_dropped(make_served: MakeServed, cut_off: bool, status: int) -> None:
    """At the end of a drain it is the server that closes the connection, so the request counts as failed."""
    served = await make_served()
    first = await served.occupied()
    served.app.cut_off = cut_off
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": b'{"inputs": [5]}'}, {"type": "http.disconnect"}]
    )
    replies: list[Message] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        replies.append(message)

    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": []}
    await asyncio.wait_for(served.app(scope, receive, send), SAFETY_S)
    assert replies[0]["status"] == status
    served.engine.release()
    await all_of(first, served.send([6]))
    assert served.engine.seen == [HELD, [6]]
    text = (await served.client.get("/metrics")).text
    assert f"bei_request_cancelled_total {float(not cut_off)}" in text
    assert f'te_request_failure{{err="unhealthy"}} {float(cut_off)}' in text


@pytest.mark.parametrize(
    "body", [b"", b"[" * 100_000, b'{"other": ' + b"[" * 100_000, b'{"input": [5], "other": ' + b"[" * 100_000]
)
async def test_truss_gets_a_reply_for_any_body(make_served: MakeServed, body: bytes) -> None:
    served = await make_served()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    request = Request({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive)
    response = await served.app.respond_by_fields(request)
    assert response.status_code in {400, 422}
    assert b"internal" not in response.body


async def test_the_access_log_has_a_line_for_each_request(
    make_served: MakeServed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    served = await make_served(access_log=True)
    reply = await served.client.post(
        "/embed", json={"inputs": [[5, 6]]}, headers={"x-baseten-request-id": "one two" + "x" * 200}
    )
    await served.client.post("/embed", json={"inputs": 5})
    assert reply.headers["x-request-id"] == ("one two" + "x" * 200)[:128]
    first, second = (record.getMessage() for record in caplog.records if record.name == "bei_core.access")
    assert first.startswith('POST /embed 200 request_id="one two')
    assert "inputs=1 tokens=2" in first
    assert second.startswith("POST /embed 422 ")


@pytest.mark.parametrize("other", [{}, {"x-baseten-request-id": ""}, {"x-baseten-request-id": "mine"}])
async def test_the_request_id_is_the_first_of_basetens_two(make_served: MakeServed, other: dict[str, str]) -> None:
    served = await make_served()
    headers = {"x-baseten-customer-request-id": "theirs", **other}
    reply = await served.client.post("/embed", json={"inputs": [[5]]}, headers=headers)
    assert reply.headers["x-request-id"] == (other.get("x-baseten-request-id") or "theirs")


async def test_a_byte_order_mark_before_a_body_is_skipped(make_served: MakeServed) -> None:
    served = await make_served()
    for body in (b'{"inputs": [[5]]}', b'{"inputs": [[5]]}' + b" " * 200_000):
        for path in ("/embed", "/"):
            reply = await served.client.post(path, content=b"\xef\xbb\xbf" + body)
            assert reply.status_code == 200, reply.text


async def test_without_access_log_there_is_no_line_for_a_request(
    make_served: MakeServed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    served = await make_served()
    await served.client.post("/embed", json={"inputs": [[5]]})
    assert not [record for record in caplog.records if "POST /embed" in record.getMessage()]


async def test_a_wrong_method_has_the_shape_of_its_route(make_served: MakeServed) -> None:
    served = await make_served()
    assert (await served.client.get("/vertex")).json()["error_type"] == "MethodNotAllowed"
    assert (await served.client.get("/v1/embeddings")).json()["error"]["type"] == "MethodNotAllowed"


@pytest.mark.parametrize(("text", "status"), [("[MASK]", 200), ("", 400)])
async def test_a_large_body_is_freed_on_a_thread_when_nothing_refers_to_it(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch, text: str, status: int
) -> None:
    """To free a million numbers on the event loop took 15 ms."""
    freed = list[tuple[bool, int]]()

    def free(held: list[Any]) -> None:
        inputs = held.pop().inputs
        freed.append((threading.current_thread() is threading.main_thread(), len(gc.get_referrers(inputs))))

    async def to_thread(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - those of `function`
        return function(*arguments)  # a thread may refer to its last result for a moment longer

    monkeypatch.setattr("bei_core.http.app.free", free)
    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    served = await make_served()
    reply = await served.client.post("/embed", json={"inputs": [text] * 2, "unknown": "a" * INLINE_BODY_BYTES})
    assert reply.status_code == status
    await at_rest()
    while not freed:
        await asyncio.sleep(0.001)
    ((is_on_loop, num_referrers),) = freed
    assert not is_on_loop
    assert num_referrers <= 1  # the frame of `free`, in Python 3.10
