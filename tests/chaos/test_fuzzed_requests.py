"""Requests that break parsers, on every kind of route: an answer, or the end of the connection, and no traceback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.corpus import BODIES, REQUESTS, kept
from tests.e2e.server import Server, ask, cache_of, no_bugs, read_reply, request_bytes

PATHS = ("/embed", "/v1/embeddings", "/rerank", "/tokenize", "/decode", "/similarity", "/", "/vertex", "/v2/embed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzzed") / "server"
    with Server(folder, cache_of(tmp_path_factory), header_timeout_s=1, body_timeout_s=1) as server:
        yield server


@kept(BODIES)
def test_a_kept_body_is_answered_on_every_route(server: Server, content: bytes) -> None:
    large = content + b" " * 200_000
    with no_bugs(server), server.connect() as connection:
        for path in PATHS:
            statuses = {ask(connection, request_bytes(path, body)).status_code for body in (content, large)}
            # Of several faults, a body in pieces may be refused for another one.
            assert statuses == {200} or statuses <= {400, 413, 422, 424}


@kept(REQUESTS)
def test_a_kept_request_is_answered_or_its_connection_closed(server: Server, content: bytes) -> None:
    with no_bugs(server), server.connect() as connection:
        connection.sendall(content)
        reply = read_reply(connection)
        assert reply is None or reply.status_code < 500 or reply.status_code in {501, 505}
        assert server.get("/health/live").status_code == 200
