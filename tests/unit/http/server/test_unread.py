"""Clients that read their replies slowly: what waits for them counts in the budget, and those that trickle are cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from bei_core.config.settings import Settings
from bei_core.http import limits
from bei_core.http.limits import BodyBudget, count_bytes
from bei_core.http.replies import Deferred, complete
from bei_core.http.server import unread
from bei_core.http.server.connection import Connection
from bei_core.http.server.pool import Pool
from tests.fakes import SAFETY_S

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
SMALL = 400_000  # bytes; sent at once, so that no request has it while the client reads
LARGE = 6_000_000
LIMIT = 8_000_000
WINDOW_S = 0.3


def replying(num_bytes: int, estimate: int = 0) -> ASGIApp:
    """An application whose replies have so many bytes, for which it counts `estimate` bytes before it encodes them."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        count_bytes(scope, estimate)
        await (await complete(Deferred(estimate, lambda: ["a" * 997] * (num_bytes // 1000)), []))(scope, receive, send)

    return app


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[tuple[Pool, tuple[str, int]]]:
    """The application on a port, with sockets that hold few bytes."""
    pool = Pool(app, Settings(model_id="a", send_timeout_s=WINDOW_S), BodyBudget(LIMIT), 100)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listening.bind(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pool), sock=listening)
    try:
        yield pool, listening.getsockname()
    finally:
        server.close()
        await pool.drain(0.0, 0.0)


class Client:
    """A client that reads when it is told to."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(SAFETY_S)
        self._socket.connect(address)
        self._socket.sendall(GET)
        self._socket.setblocking(False)

    async def read(self, num_bytes: int) -> int:
        """Returns how many bytes were read; fewer only if the connection is closed."""
        loop, num_read = asyncio.get_running_loop(), 0
        while num_read < num_bytes:
            try:
                part = await asyncio.wait_for(loop.sock_recv(self._socket, min(num_bytes - num_read, 65_536)), SAFETY_S)
            except ConnectionResetError:
                break
            if not part:
                break
            num_read += len(part)
        return num_read

    def close(self) -> None:
        """Leaves."""
        self._socket.close()


async def settled(pool: Pool, num_bytes: range) -> None:
    """Waits until the budget has such a number of bytes."""
    async with asyncio.timeout(SAFETY_S):
        while pool.budget.num_bytes not in num_bytes:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("num_bytes", [SMALL, LARGE])
async def test_what_waits_for_a_client_counts_with_its_real_size(num_bytes: int) -> None:
    """The estimate of `/tokenize` is ten times its reply; a reply that was sent at once counted nowhere."""
    async with served(replying(num_bytes, LIMIT - 1000)) as (pool, address):
        client = Client(address)
        await settled(pool, range(num_bytes // 2, num_bytes + limits.LARGE_BYTES + 10_000))
        assert await client.read(num_bytes) == num_bytes
        await settled(pool, range(1))
        client.close()


async def test_a_large_reply_is_freed_while_it_is_sent() -> None:
    async with served(replying(LARGE, LIMIT - 1000)) as (pool, address):
        pool.stall_s = SAFETY_S
        client = Client(address)
        await settled(pool, range(LARGE // 2, 2 * LARGE))
        await client.read(LARGE // 2)
        await settled(pool, range(1, LARGE // 2 + 2 * limits.LARGE_BYTES))
        client.close()
        await settled(pool, range(1))


async def post(address: tuple[str, int], num_bytes: int) -> bytes:
    """The first bytes of the reply to a body of this size."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(POST % num_bytes + bytes(num_bytes))
    try:
        return await asyncio.wait_for(reader.read(12), SAFETY_S)
    finally:
        writer.close()


async def test_slow_readers_make_way_for_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their replies were in no budget; with those of 16,384 connections the server had 6 GB."""
    async with served(replying(SMALL)) as (pool, address), AsyncExitStack() as stack:
        pool.stall_s, now = SAFETY_S, 0.0
        monkeypatch.setattr(pool.budget, "_clock", lambda: now)
        for _ in range(2 * LIMIT // SMALL):
            stack.callback(Client(address).close)
        await settled(pool, range(LIMIT - SMALL, LIMIT + 1))
        assert await post(address, 1_000_000) == b"HTTP/1.1 429"
        now = limits.SLOW_READ_S
        assert await post(address, 1_000_000) == b"HTTP/1.1 200"
        assert LIMIT // 2 < pool.budget.num_bytes < LIMIT, "no more than are needed make way"


async def test_a_client_that_trickles_is_cut_and_a_slow_one_gets_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With 4 KB each 50 s a client held its reply, and the bytes that were counted for it, for days."""
    monkeypatch.setattr(unread, "MIN_READ_BYTES_PER_S", 200_000)
    async with served(replying(SMALL)) as (pool, address):

        async def read_all(client: Client, num_bytes: int) -> int:
            total = 0
            while (num_read := await client.read(num_bytes)) == num_bytes and total + num_read < SMALL:
                total += num_read
                await asyncio.sleep(WINDOW_S / 6)
            client.close()
            return total + num_read

        slow, trickling = await asyncio.gather(read_all(Client(address), 40_000), read_all(Client(address), 2_000))
        assert slow >= SMALL
        assert trickling < SMALL / 2
        pool._log_notes()
    assert "of its reply a second" in caplog.text


async def test_an_error_in_one_deadline_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async with served(replying(1000)) as (pool, address):
        clients = [Client(address) for _ in range(3)]
        for client in clients:
            await client.read(1000)

        def broken() -> None:
            raise ValueError("no reason")

        first, *_ = connections = list(pool._connections)
        first.expire = broken  # type: ignore[method-assign]
        for connection in connections:
            connection.deadline = 0.0
        async with asyncio.timeout(SAFETY_S):
            while len(pool):
                await asyncio.sleep(0.01)
        for client in clients:
            client.close()
    assert "this is a bug" in caplog.text
