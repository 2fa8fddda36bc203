"""Requests without a key, or with a wrong one: refused by their head, before a byte of the body is read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.server import NAME, Server, cache_of, read_reply

LARGEST = 32_000_000  # bytes; `max_body_bytes` allows it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("no_key")
    (folder / "key").write_text("right")
    with Server(folder / "server", cache_of(tmp_path_factory), api_key_file=folder / "key") as server:
        yield server


@pytest.mark.parametrize("key", ["", "authorization: Bearer wrong\r\n"], ids=["without a key", "with a wrong key"])
@pytest.mark.parametrize("coding", ["", "content-encoding: gzip\r\n"], ids=["plain", "gzip"])
@pytest.mark.parametrize("path", ["/", "/invocations", "/v1/embeddings", "/rerank", "/nowhere"])
def test_the_body_is_not_waited_for_and_no_model_is_named(server: Server, path: str, coding: str, key: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGEST}\r\n{coding}{key}\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode())
        reply = read_reply(connection)
    assert reply is not None
    assert reply.status_code == (404 if path == "/nowhere" else 401)
    assert NAME not in reply.text


def test_the_key_in_the_file_opens_the_server(server: Server) -> None:
    with server.client(authorization="Bearer right") as client:
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200
