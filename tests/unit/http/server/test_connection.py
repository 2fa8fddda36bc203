"""How a connection sends an application's replies, valid or not. Attacks of clients are in tests/chaos."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import pytest
from starlette.types import Message, Receive, Scope, Send

from bei_core.config.settings import Settings
from bei_core.http.limits import MAX_CHUNKED_BYTES, MAX_URL_BYTES, BodyBudget
from bei_core.http.server.connection import Connection
from bei_core.http.server.parser import RequestParser
from bei_core.http.server.pool import Pool
from tests.fakes import SAFETY_S

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SETTINGS = Settings(model_id="a", header_timeout_s=0.5, body_timeout_s=0.5, send_timeout_s=0.5)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


def body(content: bytes = b"ok", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


@asynccontextmanager
async def served(app: App) -> AsyncIterator[tuple[Client, Pool]]:
    """A connection to the application."""
    pool = Pool(app, SETTINGS, BodyBudget(1_000_000), 100)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pool), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield (reader, writer), pool
    finally:
        writer.close()
        server.close()
        await pool.drain(0.0, 0.0)
        await asyncio.sleep(0)


async def received(client: Client, content: bytes, *, closing: bool = True) -> bytes:
    """What comes until the connection is closed."""
    reader, writer = client
    writer.write(content)
    if closing:
        writer.write(b"GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    return await asyncio.wait_for(reader.read(), SAFETY_S)


def sends(*messages: Message) -> App:
    """An application that sends these messages for every request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


async def test_replies_of_known_and_of_unknown_length() -> None:
    async with served(sends(START, body())) as (client, _):
        assert (await received(client, GET)).count(b"\r\n\r\nok") == 2
    streamed = sends({**START, "headers": []}, body(b"on", more=True), body(b"", more=True), body(b"e"))
    async with served(streamed) as (client, _):
        assert (await received(client, GET)).count(b"\r\n\r\n2\r\non\r\n1\r\ne\r\n0\r\n\r\n") == 2
    async with served(streamed) as (client, _):
        reply = await received(client, b"GET / HTTP/1.0\r\n\r\n", closing=False)
        assert reply.endswith(b"\r\n\r\none")
        assert b"chunked" not in reply


async def test_a_reply_to_head_has_no_body() -> None:
    async with served(sends(START, body())) as (client, _):
        first, second = (await received(client, GET.replace(b"GET", b"HEAD"))).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b"content-length: 2\r\n" in first
    assert first.endswith(b"\r\n\r\n")
    assert second.endswith(b"\r\n\r\nok")


class PanicError(BaseException):
    """As PyO3 raises for a panic in Rust."""


async def panics(scope: Scope, receive: Receive, send: Send) -> None:
    raise PanicError


BROKEN = {
    "panics": panics,
    "says nothing": sends(),
    "body first": sends(body()),
    "line break in a header": sends({**START, "headers": [(b"a", b"b\r\nc: d")]}, body()),
}


@pytest.mark.parametrize("app", BROKEN.values(), ids=BROKEN)
async def test_an_application_that_fails_is_answered_for(app: App, caplog: pytest.LogCaptureFixture) -> None:
    async with served(app) as (client, _):
        reply = await received(client, GET, closing=False)
    assert reply.startswith(b"HTTP/1.1 500 ")
    assert b"internal error; see the server's log" in reply
    assert "this is a bug" in caplog.text


async def test_an_error_before_the_application_begins_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    def broken(scope: Scope) -> None:
        raise ValueError("no reason")

    async with served(sends(START, body())) as (client, pool):
        pool.refused_early = broken
        reply = await received(client, GET, closing=False)
    assert reply.startswith(b"HTTP/1.1 500 ")
    assert "this is a bug" in caplog.text


CUT = {
    "too short": sends(START, body(b"o")),
    "too long": sends(START, body(b"oki")),
    "no end": sends(START, body(b"o", more=True)),
}


@pytest.mark.parametrize("app", CUT.values(), ids=CUT)
async def test_a_reply_that_is_not_whole_is_cut(app: App, caplog: pytest.LogCaptureFixture) -> None:
    async with served(app) as (client, _):
        try:
            reply = await received(client, GET, closing=False)
        except ConnectionResetError:
            reply = b""
    assert not reply.endswith((b"ok", b"oki"))
    assert "this is a bug" in caplog.text


async def test_a_body_sent_without_permission_ends_the_connection() -> None:
    """The client may still send the body or not, so the server cannot know what the next bytes are."""
    async with served(sends(START, body())) as (client, _):
        head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        reply = await received(client, head, closing=False)
    assert b"connection: close\r\n" in reply
    assert reply.endswith(b"ok")


async def test_a_body_is_thrown_away_once_the_reply_is_there() -> None:
    async with served(sends(START, body())) as (client, pool):
        reply = await received(
            client, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 500000\r\n\r\n" + b"GET /a" * 83_333 + b"GE"
        )
        assert reply.count(b"HTTP/1.1 200 ") == 2
        assert pool.budget.num_bytes == 0


async def test_a_request_that_is_refused_already_is_not_refused_again() -> None:
    """Until its task ends, a request that needs memory may choose it. That raised an error, and the other got 500."""

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with served(waits) as ((reader, writer), pool):
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nab")
        while not pool.budget.num_bytes:
            await asyncio.sleep(0.01)
        (connection,), (lease,) = pool._connections, pool.budget.incomplete
        connection.refuse(408, "it is too slow")
        lease.refuse()
        reply = await asyncio.wait_for(reader.read(), SAFETY_S)
    assert reply.count(b"HTTP/1.1 ") == 1


async def test_the_application_learns_that_its_client_has_left() -> None:
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with served(app) as ((_, writer), _):
        writer.write(GET)
        await asyncio.sleep(0.05)
        assert not left.is_set()
        writer.close()
        await asyncio.wait_for(left.wait(), SAFETY_S)


async def test_a_body_waits_in_the_socket_until_it_is_taken() -> None:
    taking = asyncio.Event()
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await taking.wait()
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await sends(START, body())(scope, receive, send)

    async with served(app) as ((reader, writer), pool):
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 900000\r\n\r\n" + bytes(900_000))
        await asyncio.sleep(0.1)
        assert 0 < pool.budget.num_bytes < 400_000
        taking.set()
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), SAFETY_S)).startswith(b"HTTP/1.1 200 ")
    assert sum(sizes) == 900_000


async def test_why_connections_ended_is_logged_together(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with served(sends(START, body())) as (client, pool):
        for _ in range(3):
            pool.note("no reason")
        assert (await received(client, b"nonsense\r\n\r\n", closing=False)).startswith(b"HTTP/1.1 400 ")
    assert "ended 3 connections: no reason" in caplog.text
    assert "ended 1 connections: 400: this is not HTTP/1.1" in caplog.text


async def test_few_bytes_of_chunked_bodies_are_parsed_in_one_turn_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bodies of 10 clients in chunks of one byte, all that had arrived, were parsed in one turn of 200 ms."""
    parsed, feed, turns = Counter[int](), RequestParser.feed, count()

    def watched(parser: RequestParser, data: bytes, at: int) -> int:
        end = feed(parser, data, at)
        parsed[turn] += end - at
        return end

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        sizes = []
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            sizes.append(len(message["body"]))
        await send(START)
        await send(body(b"ok" if sum(sizes) + len(message["body"]) == 40_000 else b"no"))

    monkeypatch.setattr(RequestParser, "feed", watched)
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    async with served(app) as (client, _), AsyncExitStack() as stack:
        address = client[1].get_extra_info("peername")
        clients = [client, *[await asyncio.open_connection(*address) for _ in range(9)]]
        for _, writer in clients[1:]:
            stack.callback(writer.close)
        replies = [
            asyncio.create_task(received(each, head + b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n", closing=False))
            for each in clients
        ]
        while not all(reply.done() for reply in replies):
            turn = next(turns)
            await asyncio.sleep(0)
    assert all(reply.result().endswith(b"\r\n\r\nok") for reply in replies)
    assert sum(parsed.values()) > 10 * 40_000 * 6
    assert max(parsed.values()) <= 2 * MAX_CHUNKED_BYTES + 10 * len(head)


HEADS = {
    "one header": b"GET / HTTP/1.1\r\nhost: a\r\na: " + b"b" * 60_000,
    "URL": b"GET /" + b"a" * 60_000,
    "many headers": b"GET / HTTP/1.1\r\nhost: a\r\n" + b"".join(b"%d:\r\n" % number for number in range(250)),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "too late"])
async def test_large_heads_that_are_not_complete_count_in_the_budget(head: bytes, *, leaves: bool) -> None:
    """16,384 clients without a key could hold 2 GB for `header_timeout_s`."""
    count = 100
    async with served(sends(START, body())) as (first, pool), AsyncExitStack() as stack:
        address = first[1].get_extra_info("peername")
        clients = [await asyncio.open_connection(*address) for _ in range(count - 1)]
        for _, writer in clients:
            stack.callback(writer.close)
            writer.write(head)
        budget = pool.budget
        async with asyncio.timeout(SAFETY_S):
            while not (len(pool._notes) or pool._noted_at > 0) and budget.num_bytes < 30_000 * (count - 1):
                await asyncio.sleep(0.001)
        assert 500_000 < budget.num_bytes <= budget.limit
        if leaves:
            for _, writer in clients:
                writer.close()
        async with asyncio.timeout(SAFETY_S):
            while budget.num_bytes:
                await asyncio.sleep(0.01)
        assert not budget.incomplete


async def test_a_large_head_counts_until_its_request_ends() -> None:
    seen, held = list[int](), list[int]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(pool.budget.num_bytes)
        (connection,) = pool._connections
        assert isinstance(connection, Connection)
        held.append(sum(len(value) for _, value in connection._parser.headers))
        assert len(scope["headers"]) == 2
        await sends(START, body())(scope, receive, send)

    async with served(app) as (client, pool):
        assert (await received(client, HEADS["one header"] + b"\r\n\r\n")).count(b"\r\n\r\nok") == 2
        assert held[0] == 0, "an idle connection would hold it until the next request"
        assert seen[0] > 120_000
        assert seen[1] == 0
        assert not pool.budget.num_bytes


@pytest.mark.parametrize(("size", "status"), [(MAX_URL_BYTES, 200), (MAX_URL_BYTES + 1, 414)])
async def test_a_url_has_a_largest_size(size: int, status: int) -> None:
    async with served(sends(START, body())) as (client, _):
        url = b"/?" + b"a" * (size - 2)
        reply = await received(client, b"GET " + url + b" HTTP/1.1\r\nhost: a\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert (b"more than 8192" in reply) is (status == 414)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"host: a\r\nhost: a\r\n",
        b"host: a\r\ntransfer-encoding: gzip, chunked\r\n",
        b"host: a\r\ntransfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
    ],
    ids=["no host", "two hosts", "gzip", "identity"],
)
async def test_a_head_that_httptools_accepts_against_the_standard_is_refused(lines: bytes) -> None:
    """RFC 9112, 3.2 and 6.1. A body in another coding would be read as if it had none."""
    async with served(sends(START, body())) as (client, _):
        reply = await received(client, b"POST / HTTP/1.1\r\n" + lines + b"\r\n", closing=False)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in reply


@pytest.mark.parametrize(
    ("url", "path"), [(b"http://b", "/"), (b"http://b?c", "/"), (b"http://b/c%20d", "/c d"), (b"*", "*")]
)
async def test_an_absolute_url_is_its_path(url: bytes, path: str, caplog: pytest.LogCaptureFixture) -> None:
    paths: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await sends(START, body())(scope, receive, send)

    async with served(app) as (client, _):
        assert (await received(client, b"OPTIONS " + url + b" HTTP/1.1\r\nhost: a\r\n\r\n")).count(b" 200 OK") == 2
    assert paths == [path, "/last"]
    assert "bug" not in caplog.text
