"""A server that gets SIGTERM under load answers the accepted requests, then ends with status 0."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bei_core.http.limits import ON_ITS_WAY_S
from tests.collector import Collector
from tests.e2e.server import (
    ENDLESS,
    REFERENCE,
    TEXTS,
    Server,
    ask,
    cache_of,
    log_shown,
    openai_request,
    read_reply,
    vectors,
    wait_until,
)
from tests.fakes import SAFETY_S
from tests.golden.tolerance import Tolerance, compare

NUM_CLIENTS = 8
MANY = 1  # times all the texts, in each of two requests: seconds of work for two processors


@pytest.fixture
def server(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Not started yet. On a busy machine a second of work may take a minute."""
    return Server(tmp_path / "server", cache_of(tmp_path_factory), drain_timeout_s=2 * SAFETY_S)


def refuses(server: Server) -> bool:
    """Whether the port refuses connections."""
    try:
        server.connect().close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def talk(connection: socket.socket, heard: list[int], tolerance: Tolerance) -> None:
    """Send requests one after the other until the server announces that it closes the connection, and does so."""
    request = openai_request(TEXTS[:3])
    while True:
        since = time.monotonic()
        connection.sendall(request)
        sent = time.monotonic()
        reply = read_reply(connection)
        if reply is None:  # nothing of this one was read: it may only have come too late
            assert sent - since > ON_ITS_WAY_S, "a request that came in time was dropped"
            return
        assert reply.status_code == 200, reply.text
        compare(vectors(reply.json()), REFERENCE.vectors[:3], tolerance)
        heard.append(len(reply.content))
        if reply.headers.get("connection") == "close":
            assert connection.recv(1) == b""
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_all_that_was_accepted_is_answered(server: Server, number: signal.Signals) -> None:
    with server, log_shown(server), ExitStack() as stack, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        tolerance = server.tolerance()
        large = [stack.enter_context(server.connect()) for _ in range(2)]
        heard: list[int] = []
        talking = [stack.enter_context(server.connect()) for _ in range(NUM_CLIENTS)]
        talks = [pool.submit(talk, connection, heard, tolerance) for connection in talking]
        wait_until(lambda: len(heard) >= 2 * NUM_CLIENTS)
        for connection in large:
            connection.sendall(openai_request(TEXTS * MANY))
        wait_until(lambda: server.metrics()["te_queue_size"] > len(TEXTS) * MANY)
        server.send_signal(number)
        wait_until(lambda: refuses(server))
        assert server.is_running, "too fast a machine: give it more to do"
        for connection in large:
            reply = read_reply(connection)
            assert reply is not None
            assert (reply.status_code, reply.headers["connection"]) == (200, "close")
            compare(vectors(reply.json()), np.tile(REFERENCE.vectors, (MANY, 1)), tolerance)
            assert connection.recv(1) == b""
        for done in talks:
            done.result(SAFETY_S)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_what_the_drain_cannot_answer_is_told(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    hasty = Server(tmp_path / "server", cache_of(tmp_path_factory), drain_timeout_s=2.0, access_log="true")
    with hasty as server, log_shown(server), server.connect() as connection:
        connection.sendall(openai_request(ENDLESS * 8))
        wait_until(lambda: server.metrics()["te_queue_size"] > 0)
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "closing 1 connections" in server.log
        assert "ended with 1 requests unanswered" in server.log
        assert "goodbye" not in server.log
        assert "POST /v1/embeddings 503 " in server.log


def test_the_last_traces_are_sent(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Traces that wait for the next upload, which happens every five seconds, are sent at the end."""
    with Collector() as collector:
        traced = Server(tmp_path / "server", cache_of(tmp_path_factory), otlp_endpoint=collector.url)
        with traced as server, log_shown(server):
            assert server.post("/v1/embeddings", {"input": TEXTS[:3]}).status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait() == 0
        assert [span.name for span in collector.spans] == ["POST /v1/embeddings"]


def test_what_is_on_its_way_is_answered(server: Server) -> None:
    """Requests on connections that were idle at the signal are answered; health probes get an error."""
    with server, log_shown(server), ExitStack() as stack:
        tolerance = server.tolerance()
        idle = [stack.enter_context(server.connect()) for _ in range(4)]
        for connection in idle:
            assert ask(connection, openai_request(TEXTS[:3])).status_code == 200
        server.send_signal(signal.SIGTERM)
        since = time.monotonic()
        while not refuses(server):
            since = time.monotonic()
        for connection in idle[:-1]:
            connection.sendall(openai_request(TEXTS[:3]))
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        replies = [read_reply(connection) for connection in idle]
        if time.monotonic() - since < ON_ITS_WAY_S:  # else they may have come too late
            assert [reply and reply.status_code for reply in replies] == [200, 200, 200, 503]
        for reply in replies:
            assert reply is None or reply.headers["connection"] == "close"
            if reply is not None and reply.status_code == 200:
                compare(vectors(reply.json()), REFERENCE.vectors[:3], tolerance)
        assert server.wait() == 0


@pytest.mark.long
def test_clients_that_do_nothing_do_not_keep_it_alive(server: Server) -> None:
    """Clients that are idle, stop inside a request or read nothing do not delay the end; active ones are answered."""
    request = openai_request(["a"] * 1024)
    with server, log_shown(server), ExitStack() as stack:
        idle, half_head, half_body, late, deaf = (stack.enter_context(socket.socket()) for _ in range(5))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sizes = {idle: 0, half_head: 20, half_body: len(request) - 1, late: len(request) - 1, deaf: len(request)}
        for connection, size in sizes.items():
            connection.settimeout(SAFETY_S)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(request[:size])
        wait_until(lambda: server.metrics()["te_request_success"] == 1)
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server))
        late.sendall(request[-1:])
        reply = read_reply(late)
        assert reply is not None
        assert (reply.status_code, len(reply.json()["data"])) == (200, 1024)
        assert server.wait() == 0
        assert "Traceback" not in server.log
