"""Requests between their arrival and the queue take space in the line; those whose client leaves give it back."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from starlette.types import Message

from bei_core.http import route as route_module
from bei_core.http.bodies import INLINE_BODY_BYTES, Undecoded
from bei_core.tasks import EncodeOptions, Text
from bei_core.text.workers import Tokenized
from tests.fakes import SAFETY_S
from tests.unit.http.overloaded import (
    MakeServed,
    Served,
    assert_it_accepts_again,
    lined_up,
    occupied,
    set_rate,
)


def hold_tokenizer(served: Served, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """From now on texts wait for the second event before they are tokenized; the first one is set by then."""
    begun, ended, tokenize = asyncio.Event(), asyncio.Event(), served.service.tokenizer.tokenize

    async def held(texts: list[Text], options: EncodeOptions, deadline: float | None) -> Tokenized:
        begun.set()
        await ended.wait()
        return await tokenize(texts, options, deadline)

    monkeypatch.setattr(served.service.tokenizer, "tokenize", held)
    return begun, ended


async def send_raw(served: Served, body: bytes) -> asyncio.StreamWriter:
    """Sends a request on a connection of its own, which the test closes."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    return writer


async def test_requests_that_arrive_together_are_not_all_accepted_for_the_space_of_one(make_served: MakeServed) -> None:
    served = await make_served(max_queue_wait_s=12.0, max_batch_tokens=48)
    set_rate(served, 48, 4.0)
    first, waiting = await lined_up(served, 48)
    scopes = [{"type": "http", "method": "POST", "path": "/embed", "headers": []} for _ in range(3)]
    refusals = [served.app.refused_early(scope) for scope in scopes]
    assert [refusal is not None for refusal in refusals] == [False, True, True]
    assert served.app._num_coming == 1
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"inputs": []}', "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await served.app(scopes[0], receive, send)
    assert (sent[0]["status"], served.app._num_coming) == (400, 0)
    served.engine.release()
    assert {(await task).status_code for task in (first, waiting)} == {200}


async def test_requests_that_wait_for_their_tokens_take_space_in_the_line(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 8 times the capacity 340 requests a second were accepted while others waited for the tokenizer's thread."""
    served = await make_served(max_queue_wait_s=12.0, max_batch_tokens=48)
    set_rate(served, 48, 4.0)
    first, waiting = await lined_up(served, 48)
    begun, ended = hold_tokenizer(served, monkeypatch)
    accepted = asyncio.create_task(served.client.post("/embed", json={"inputs": [[5] * 48]}))
    await begun.wait()
    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": []}
    assert served.app._num_coming == 0
    assert served.app.refused_early(scope) is not None
    ended.set()
    served.engine.release()
    assert {(await task).status_code for task in (first, waiting, accepted)} == {200}


async def test_a_client_that_leaves_makes_space_without_a_task_that_watches_it(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer and a task for each request that waits took 5% of a processor at 8 times the capacity."""
    monkeypatch.setattr(route_module, "ReceivingWatch", None)
    served = await make_served()
    first = await occupied(served)
    writer = await send_raw(served, b'{"inputs": [[5]]}')
    for num_items in (1, 0):
        async with asyncio.timeout(SAFETY_S):
            while served.service._runner.num_items != num_items:
                await asyncio.sleep(0.001)
        writer.close()
    assert "bei_request_cancelled_total 1.0" in (await served.client.get("/metrics")).text
    await assert_it_accepts_again(served, first)
    assert [5] not in served.engine.seen[:-1], "the one that left does not run"


async def test_a_client_that_leaves_while_its_body_is_decoded_takes_no_space(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await make_served()
    first = await occupied(served)
    begun, ended, decode_body = threading.Event(), threading.Event(), Undecoded.decode

    def decode(*arguments: Any) -> object:  # noqa: ANN401 - those of `Undecoded.decode`
        begun.set()
        assert ended.wait(SAFETY_S)
        return decode_body(*arguments)

    monkeypatch.setattr(Undecoded, "decode", decode)
    writer = await send_raw(served, json.dumps({"inputs": [[5]], "unknown": "a" * INLINE_BODY_BYTES}).encode())
    await asyncio.to_thread(begun.wait, SAFETY_S)
    writer.close()
    async with asyncio.timeout(SAFETY_S):
        while len(served.pool) > 1:  # the connection of the client that stays
            await asyncio.sleep(0.001)
    ended.set()
    async with asyncio.timeout(SAFETY_S):
        while "bei_request_cancelled_total 1.0" not in (await served.client.get("/metrics")).text:
            await asyncio.sleep(0.001)
    assert served.service._runner.num_items == 0
    await assert_it_accepts_again(served, first)


async def test_a_request_of_many_inputs_takes_at_most_the_space_of_a_batch_while_it_waits_for_its_tokens(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await make_served(max_queue_wait_s=12.0, max_batch_tokens=48)
    first, waiting = await lined_up(served, 12)
    begun, ended = hold_tokenizer(served, monkeypatch)
    accepted = asyncio.create_task(served.client.post("/embed", json={"inputs": [[5] * 12] * 30}))
    await begun.wait()
    assert served.service._num_unqueued == 48 // 12
    ended.set()
    served.engine.release()
    assert {(await task).status_code for task in (first, waiting, accepted)} == {200}
    assert served.service._num_unqueued == 0
