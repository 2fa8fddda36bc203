"""When the event loop rests under overload."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from bei_core.config.settings import Settings
from bei_core.http.limits import BodyBudget
from bei_core.http.server import pool as pools
from bei_core.http.server.connection import Connection
from bei_core.http.server.pool import Pool
from tests.fakes import SAFETY_S

NUM_CLIENTS = 40
REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_the_event_loop_rests_after_it_has_accepted_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under overload; otherwise clients with a connection for each request fill the queue of the socket."""
    rests = list[float]()
    monkeypatch.setattr(pools, "time", SimpleNamespace(sleep=rests.append))
    monkeypatch.setattr(pools, "OVERLOAD_S", SAFETY_S)
    listening = socket.create_server(("127.0.0.1", 0), backlog=NUM_CLIENTS)
    clients = [socket.create_connection(listening.getsockname(), SAFETY_S) for _ in range(NUM_CLIENTS)]
    for client in clients:
        client.sendall(REQUEST)

    async def serve() -> None:
        pool = Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 2 * NUM_CLIENTS)
        pool.refused()
        server = await asyncio.get_running_loop().create_server(lambda: Connection(pool), sock=listening)
        replies = await asyncio.gather(*(asyncio.to_thread(client.recv, 1 << 16) for client in clients))
        assert all(reply.endswith(b"ok") for reply in replies)
        server.close()
        await pool.drain(0.0, 0.0)

    uvloop.run(serve())
    assert 1 <= len(rests) <= NUM_CLIENTS / 4
    for client in clients:
        client.close()


async def test_an_error_in_the_chunks_of_one_connection_does_not_stop_those_of_the_others() -> None:
    parsed, pool = list[str](), Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 10)

    def broken() -> int:
        parsed.append("broken")
        raise ValueError

    def sound() -> int:
        parsed.append("sound")
        return 1

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    for parse_chunks in (broken, sound, broken, sound):
        pool.parse_later(Mock(parse_chunks=parse_chunks))
    for _ in range(5):
        await asyncio.sleep(0)
    await pool.drain(0.0, 0.0)
    assert parsed == ["broken", "sound"] * 2


async def test_few_requests_of_a_group_begin_in_one_turn_and_health_checks_first() -> None:
    """Under overload; the event loop reads between such turns."""
    begun, pool = list[str](), Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 10)

    async def begin(name: str) -> None:
        begun.append(name)

    def start(*names: str) -> None:
        for name in names:
            pool.start(begin(name), is_small=name == "health")

    start("before")
    await asyncio.sleep(0)
    assert begun == ["before"], "without overload, at once"
    pool.refused()
    start(*["embed"] * NUM_CLIENTS, "health")
    num_begun = list[int]()
    while len(begun) < 2 + NUM_CLIENTS:
        await asyncio.sleep(0)
        num_begun.append(len(begun))
    assert max(np.diff([1, *num_begun])) < NUM_CLIENTS / 2
    assert begun[1] == "health"
    await pool.drain(0.0, 0.0)


async def test_health_checks_that_keep_coming_do_not_keep_others_from_beginning() -> None:
    pool, others = Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 10), list[str]()

    async def check() -> None:
        if len(others) < NUM_CLIENTS:
            pool.start(check(), is_small=True)

    async def begin() -> None:
        others.append("embed")

    pool.refused()
    for _ in range(NUM_CLIENTS):
        pool.start(check(), is_small=True)
        pool.start(begin(), is_small=False)
    for _ in range(NUM_CLIENTS):
        await asyncio.sleep(0)
    assert len(others) == NUM_CLIENTS
    await pool.drain(0.0, 0.0)


async def test_a_request_that_has_not_begun_when_the_server_ends_is_not_forgotten() -> None:
    begun, pool = list[str](), Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 10)

    async def begin() -> None:
        begun.append("embed")

    pool.refused()
    for _ in range(NUM_CLIENTS):
        pool.start(begin(), is_small=False)
    assert await pool.drain(0.0, 0.0) == NUM_CLIENTS
    await asyncio.sleep(0)
    assert len(begun) == NUM_CLIENTS


async def test_few_connections_discard_in_one_turn_of_the_event_loop() -> None:
    discarded, pool = list[int](), Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 10)
    for number in range(20):
        pool.discard_later(Mock(discard=partial(discarded.append, number)))
    counts = list[int]()
    while len(discarded) < 20:
        await asyncio.sleep(0)
        counts.append(len(discarded))
    assert counts == [8, 16, 20]
    assert discarded == list(range(20))
    await pool.drain(0.0, 0.0)


async def test_all_of_a_refused_body_is_read_so_that_the_client_gets_the_reply() -> None:
    listening, body = socket.create_server(("127.0.0.1", 0)), bytes(20_000_000)
    pool = Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 10)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pool), sock=listening)
    with socket.create_connection(listening.getsockname(), SAFETY_S) as client:
        head = b"POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: %d\r\n\r\n" % len(body)
        await asyncio.to_thread(client.sendall, head + body)
        assert (await asyncio.to_thread(client.recv, 1 << 16)).startswith(b"HTTP/1.1 400 ")
    server.close()
    await pool.drain(0.0, 0.0)
