"""Connections that come while the event loop rests under overload."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest
from starlette.types import Receive, Scope, Send

from bei_core.config.settings import Settings
from bei_core.errors import OverloadedError
from bei_core.http.limits import BodyBudget
from bei_core.http.replies import Refusal
from bei_core.http.server.arrivals import accept_waiting
from bei_core.http.server.pool import Pool
from tests.fakes import SAFETY_S, at_rest

HEAD = b"POST /embed HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
REQUEST = HEAD % 2 + b"{}"
OTHER = REQUEST.replace(b"/embed", b"/other")
BUSY = OverloadedError("busy", cause="queue_wait")


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Rested:
    """A pool that refuses one head, and its socket, on which nothing is accepted until `rest` is called."""

    def __init__(self, listening: socket.socket, *, keep_alive: bool = False) -> None:
        listening.setblocking(False)
        self.counted: list[OverloadedError] = []
        self.pool = Pool(ok, Settings(model_id="a"), BodyBudget(1_000_000), 100)
        refusal = Refusal(BUSY, b"content-length: 4\r\n", b"busy", math.inf, self.counted.append, lambda: None)
        self.pool.refused_heads.add(HEAD % 2, refusal, keep_alive=keep_alive)
        self._listening = listening
        self._clients: list[socket.socket] = []

    def client(self, data: bytes = b"") -> socket.socket:
        """A client that has sent these bytes."""
        client = socket.socket(self._listening.family)
        client.settimeout(SAFETY_S)
        client.connect(self._listening.getsockname())
        client.sendall(data)
        self._clients.append(client)
        return client

    def rest(self) -> None:
        """Accepts what has come."""
        accept_waiting(self.pool, self._listening)

    async def close(self) -> None:
        """Closes everything."""
        await self.pool.drain(0.0, 0.0)
        for sock in (*self._clients, self._listening):
            sock.close()


@pytest.fixture
async def make_rested() -> AsyncIterator[Callable[..., Rested]]:
    async with contextlib.AsyncExitStack() as stack:

        def make(listening: socket.socket | None = None, *, keep_alive: bool = False) -> Rested:
            rested = Rested(listening or socket.create_server(("127.0.0.1", 0)), keep_alive=keep_alive)
            stack.push_async_callback(rested.close)
            return rested

        yield make


async def reply_to(client: socket.socket) -> bytes:
    """All bytes of the reply, after which the server has closed the connection."""
    parts = []
    while part := await asyncio.to_thread(client.recv, 1 << 16):
        parts.append(part)
    return b"".join(parts)


async def test_known_heads_are_refused_and_all_others_are_served(make_rested: Callable[..., Rested]) -> None:
    rested = make_rested()
    known = [rested.client(HEAD % size + b"x" * size) for size in (0, 2, 10_000)]
    others = [rested.client(OTHER) for _ in range(3)]
    rested.rest()
    assert len(rested.pool) == 0, "a refused request has no connection"
    for client in known:
        head, body = (await reply_to(client)).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 ")
        assert {b"connection: close", b"retry-after: 1"} <= set(head.split(b"\r\n"))
        assert body == b"busy"
    assert rested.counted == [BUSY] * 3
    for client in others:
        assert (await reply_to(client)).endswith(b"\r\n\r\nok")


@pytest.mark.parametrize(
    ("first", "rest", "end"),
    [(b"", REQUEST, b"busy"), (REQUEST[:20], REQUEST[20:], b"ok"), (HEAD % 100_000, b"x" * 100_000, b"ok")],
    ids=["nothing yet", "part of a head", "a body larger than what is looked at"],
)
async def test_a_request_that_is_not_complete_is_read_by_a_connection(
    make_rested: Callable[..., Rested], first: bytes, rest: bytes, end: bytes
) -> None:
    rested = make_rested()
    client = rested.client(first)
    rested.rest()
    assert rested.counted == []
    await at_rest()  # the connection has read what has come
    sending = asyncio.create_task(asyncio.to_thread(client.sendall, rest))
    reply = await reply_to(client)
    await sending
    assert reply.endswith(b"\r\n\r\n" + end)


async def test_a_client_that_keeps_its_connection_gets_one(make_rested: Callable[..., Rested]) -> None:
    rested = make_rested(keep_alive=True)
    client = rested.client(REQUEST)
    rested.rest()
    assert (await asyncio.to_thread(client.recv, 1 << 16)).startswith(b"HTTP/1.1 429 ")
    client.sendall(OTHER)
    assert (await reply_to(client)).endswith(b"ok")


async def test_clients_that_have_left_are_forgotten(make_rested: Callable[..., Rested]) -> None:
    rested = make_rested()
    for data in (b"", REQUEST, OTHER):
        client = rested.client(data)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
        client.close()
    rested.rest()
    last = rested.client(OTHER)
    rested.rest()
    assert (await reply_to(last)).endswith(b"ok")
    assert len(rested.pool) == 0


async def test_a_unix_socket_and_a_closed_one(
    make_rested: Callable[..., Rested], tmp_path_factory: pytest.TempPathFactory
) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path_factory.mktemp("uds") / "s"))
    listening.listen()
    rested = make_rested(listening)
    known, other = rested.client(REQUEST), rested.client(OTHER)
    rested.rest()
    assert (await reply_to(known)).startswith(b"HTTP/1.1 429 ")
    assert (await reply_to(other)).endswith(b"ok")
    listening.close()
    rested.rest()
