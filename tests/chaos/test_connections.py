"""Clients that hold connections, send without end, or send what is not HTTP: each costs the server a bounded amount."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psutil
import pytest

from tests.e2e.server import (
    SLOW,
    TEXTS,
    Server,
    ask,
    cache_of,
    log_shown,
    openai_request,
    read_reply,
    reply_of,
    request_bytes,
    wait_until,
)
from tests.fakes import SAFETY_S

MAX_CONNECTIONS = 40
MAX_BODY_BYTES = 8_000_000
PING = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /embed HTTP/1.1\r\nhost: a\r\n"
# The command that follows, with a server that logs at once why it ended connections, and not every ten seconds.
LOGS_AT_ONCE = """
import sys
from bei_core.cli.main import main
from bei_core.http.server import pool
pool._NOTE_EVERY_S = 0.1
del sys.argv[0]
main()
"""


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits: dict[str, Any] = {
        "header_timeout_s": 1.0,
        "body_timeout_s": 2.0,
        "send_timeout_s": 1.0,
        "keep_alive_timeout_s": 3.0,
        "max_connections": MAX_CONNECTIONS,
        "max_body_bytes_in_flight": MAX_BODY_BYTES,
    }
    folder, cache = tmp_path_factory.mktemp("limited") / "server", cache_of(tmp_path_factory)
    with Server(folder, cache, (sys.executable, "-c", LOGS_AT_ONCE), **limits) as server:
        assert server.post("/v1/embeddings", {"input": SLOW}).status_code == 200
        yield server


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    """A server with small limits, which answers after each test and has found no bug in itself."""
    already = len(_server.log)
    with log_shown(_server):
        yield _server
        assert _server.get("/health").status_code == 200
        assert "Traceback" not in _server.log[already:]


@contextlib.contextmanager
def memory_flat(server: Server, limit: float = 32e6) -> Iterator[None]:
    """Check at the end of the `with` block that the server has grown by less than `limit` bytes."""
    server.wait_for_lone_graphs()
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    yield
    growth = process.memory_info().rss - before
    print(f"grew by {growth / 1e6:.1f} MB")
    assert growth < limit


def rest_of(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    return received


def closes(connection: socket.socket) -> bool:
    """Whether the server closes the connection without sending anything more."""
    return rest_of(connection) == b""


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"\r\n"),
        (b"GET /", b"a"),
        (b"GET /?", b"a=b&"),
        (b"GET / HTTP/1.1\r\n", b"a"),
        (b"GET / HTTP/1.1\r\na: ", b"a"),
        (b"GET / HTTP/1.1\r\n", b"a:\r\n"),
        (POST + b"transfer-encoding: chunked\r\n\r\n", b"0"),
        (POST + b"transfer-encoding: chunked\r\n\r\n1;", b"a=b;"),
        (POST + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a"),
        (POST + b"transfer-encoding: chunked\r\n\r\n0\r\na: ", b"a"),
        (POST + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
    ],
    ids=[
        "empty lines", "URL", "query", "header name", "header value", "headers", "chunk size", "chunk extension",
        "trailer name", "trailer value", "trailers",
    ],
)  # fmt: skip
def test_what_never_ends_is_cut_off(server: Server, start: bytes, piece: bytes) -> None:
    """The server takes 64 KB, says why it takes no more, and closes the connection."""
    block = piece * (16_384 // len(piece))
    with memory_flat(server), server.connect() as connection:
        connection.sendall(start)
        received = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(16):  # 256 KB
                connection.sendall(block)
            received = rest_of(connection)
    assert received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), received[:200]
    assert b"connection: close" in received
    assert b"65536 bytes" in received or b"256 headers" in received


def test_many_headers_are_refused(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n")
        assert rest_of(connection).startswith(b"HTTP/1.1 431 ")


def test_pipelined_requests_wait_in_the_sockets(server: Server) -> None:
    """Each of 4 clients sends up to 100,000 requests on one connection before it reads a reply."""
    num_sent = 0
    with memory_flat(server), ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(server.connect())
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                for _ in range(1000):
                    connection.sendall(PING * 100)
                    num_sent += 100
        assert num_sent > 1000
        assert server.get("/health/live").status_code == 200


def test_pipelined_requests_are_all_answered(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(PING * 2000 + PING.replace(b"host: a", b"host: a\r\nconnection: close"))
        received = rest_of(connection)
    assert received.count(b"HTTP/1.1 200 ") == 2001


def test_idle_and_half_sent_connections_end(server: Server) -> None:
    """An idle connection is closed without a reply; one that stops inside a request gets 408."""
    request = openai_request(TEXTS[:3])
    body = request.index(b"\r\n\r\n") + 4
    with ExitStack() as stack:
        idle, used, half_head, half_body, trickling = (stack.enter_context(server.connect()) for _ in range(5))
        assert ask(used, request).status_code == 200
        half_head.sendall(request[:20])
        half_body.sendall(request[: body + 10])
        trickling.sendall(request[:body])
        sent = body
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < len(request) and not readable(trickling):
                trickling.sendall(request[sent : sent + 1])
                sent += 1
                time.sleep(0.05)
        assert sent < len(request), "the whole request was taken, however slowly it came"
        for connection in (half_head, half_body, trickling):
            assert rest_of(connection).startswith(b"HTTP/1.1 408 ")
        assert closes(idle)
        assert closes(used)


def readable(connection: socket.socket) -> bool:
    """Whether there is something to read."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(SAFETY_S)


def test_the_longest_idle_make_way_for_new_ones(server: Server) -> None:
    """Over the limit of connections, the longest idle one is closed; clients that send requests are answered."""
    with ExitStack() as stack:
        held = []
        for index in range(2 * MAX_CONNECTIONS):
            held.append(stack.enter_context(server.connect()))
            if index % 2:
                held[-1].sendall(POST[:20])
        assert ask(stack.enter_context(server.connect()), openai_request(TEXTS[:1])).status_code == 200
        newest = held[-1]
        newest.sendall(POST[20:] + b"content-length: 15\r\n\r\n" + b'{"inputs": "a"}')
        reply = read_reply(newest)
        assert reply is not None
        assert reply.status_code == 200
        assert all(closes(connection) for connection in held[: MAX_CONNECTIONS // 2])
    wait_until(lambda: "the longest idle of max_connections" in server.log)


def test_no_more_connections_than_allowed_are_served_at_once(server: Server) -> None:
    """When no connection is idle, a new one gets an error with Retry-After."""
    body = POST + b"content-length: 15\r\n\r\n"
    with ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(MAX_CONNECTIONS)]
        for connection in held:
            connection.sendall(body)
        time.sleep(0.2)
        late = stack.enter_context(server.connect())
        reply = read_reply(late)
        assert reply is not None
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        for connection in held:
            connection.sendall(b'{"inputs": "a"}')
        for connection in held:
            reply = read_reply(connection)
            assert reply is not None
            assert reply.status_code == 200


OFFERS = ["h2,h2c", "h2c", "websocket", "TLS/1.2", "foo/2"]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_offer_of_another_protocol_is_ignored(server: Server, offer: str, is_chunked: bool, step: int) -> None:
    """The offer is ignored: this request and the next one on the connection are answered, however the head is split."""
    headers = (f"Upgrade: {offer}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    plain = b'{"inputs": "a"}'
    request = request_bytes("/embed", plain, *headers)
    if is_chunked:
        head = request.partition(b"content-length: 15\r\n")
        request = head[0] + b"transfer-encoding: chunked\r\n" + head[2].replace(plain, b"f\r\n%b\r\n0\r\n\r\n" % plain)
    with server.connect() as connection:
        content = request + request
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(content), step):
            connection.sendall(content[at : at + step])
        with connection.makefile("rb") as file:
            replies = [reply_of(file) for _ in range(2)]
        assert [reply and reply.status_code for reply in replies] == [200, 200]
        assert ask(connection, request).status_code == 200


def test_connect_is_refused(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\nsecrets")
        assert rest_of(connection).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("garbage", [b"\x00\x01", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"{}\r\n\r\n"])
def test_a_request_before_garbage_is_answered_first(server: Server, garbage: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(openai_request(TEXTS[:3]) + garbage)
        received = rest_of(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in received


def test_bodies_that_never_end_are_held_up_to_a_limit(server: Server) -> None:
    """30 clients send 1 MB each of 31.9 MB; the largest are refused, and small requests go on being answered."""
    head = POST + b"content-length: 31900000\r\n\r\n"
    with memory_flat(server, 3 * MAX_BODY_BYTES), ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(30)]
        for connection in connections:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(head + b" " * 1_000_000)
            assert server.post("/embed", {"inputs": "a"}).status_code == 200
        statuses = [rest_of(connection)[9:12] for connection in connections]
    assert b"429" in statuses  # on a slow machine, others are out of time before there is no room for them
    assert set(statuses) <= {b"429", b"408", b""}


def test_a_client_that_reads_nothing_is_cut_off(server: Server) -> None:
    """The reply is more than the sockets hold."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SAFETY_S)
        connection.connect(("127.0.0.1", server.port))
        process = psutil.Process(server.pid)
        connection.sendall(openai_request(["a"] * 1024))
        mine = connection.getsockname()[1]
        wait_until(lambda: server.metrics()["te_queue_size"] == 0)
        wait_until(lambda: all(held.raddr.port != mine for held in process.net_connections("tcp") if held.raddr))
    wait_until(lambda: "the client reads less than 1024 bytes of its reply a second" in server.log)
