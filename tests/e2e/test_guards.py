"""What is checked before a route runs: the key, the payload limit, origins of web pages, HTTP itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.server import Server, cache_of, log_shown, request_bytes

KEY = "the-key"
LIMIT = 100_000
ORIGIN = "https://a.example"
PUBLIC = ["/health", "/health/live", "/health/ready", "/ping", "/metrics", "/docs", "/openapi.json"]


@pytest.fixture(scope="module")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"api_key": KEY, "payload_limit": LIMIT, "cors_allow_origin": ORIGIN}
    with Server(tmp_path_factory.mktemp("guarded") / "server", cache_of(tmp_path_factory), **settings) as server:
        yield server


@pytest.fixture
def guarded(_running: Server) -> Iterator[Server]:
    """A server with a key, a small limit, and web pages of one origin that may call it; healthy after each test."""
    already = len(_running.log)
    with log_shown(_running):
        yield _running
        assert _running.get("/health").status_code == 200
        with _running.client(authorization=f"Bearer {KEY}") as client:
            assert client.post("/embed", json={"inputs": "a"}).status_code == 200
        assert "Traceback" not in _running.log[already:]


@pytest.fixture
def client(guarded: Server) -> Iterator[httpx.Client]:
    """Has the key."""
    with guarded.client(authorization=f"Bearer {KEY}") as client:
        yield client


def answers(connection: socket.socket, *parts: bytes, closing: bool = False) -> bytes:
    """What the server says to these bytes, until it closes the connection, or until `parts` says to."""
    for part in parts:
        connection.sendall(part)
    if closing:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return received


@pytest.mark.parametrize(
    "given",
    ["", KEY, "Bearer", "Bearer wrong", f"Bearer {KEY}s", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer é"],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/embed"), ("POST", "/v1/embeddings"), ("GET", "/info")])
def test_a_wrong_key_opens_nothing(guarded: Server, method: str, path: str, given: str) -> None:
    with guarded.client() as client:
        headers = {b"authorization": given.encode()} if given else {}
        reply = client.request(method, path, content=b"not read", headers=headers)
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    body = reply.json()
    if path.startswith("/v1"):
        assert (body["error"]["type"], body["error"]["code"]) == ("Unauthorized", "invalid_api_key")
    else:
        assert (body["error_type"], "API key" in body["error"]) == ("Unauthorized", True)
    assert KEY not in reply.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Api-Key", "api-key"])
def test_the_right_key_opens(guarded: Server, scheme: str) -> None:
    with guarded.client(authorization=f"{scheme} {KEY}") as client:
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200
        assert client.get("/info").status_code == 200


@pytest.mark.parametrize("path", PUBLIC)
def test_probes_need_no_key(guarded: Server, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/tokenize"])
def test_a_body_over_the_limit_is_refused(client: httpx.Client, path: str, is_chunked: bool) -> None:
    field = "input" if path.startswith("/v1") else "inputs"
    body = f'{{"{field}": "{"a" * LIMIT}"}}'.encode()
    pieces = iter([body[:50_000], body[50_000:]])
    reply = client.post(path, content=pieces if is_chunked else body)
    assert reply.status_code == 413
    error = reply.json()
    kind = error["error"]["type"] if path.startswith("/v1") else error["error_type"]
    assert kind == ("PayloadTooLarge" if path.startswith("/v1") else "Validation")  # TEI's kind
    assert str(LIMIT) in reply.text


@pytest.mark.parametrize("is_chunked", [False, True], ids=["content-length", "chunked"])
def test_a_body_at_the_limit_is_read(client: httpx.Client, is_chunked: bool) -> None:
    body = b'{"inputs": "a"}'.ljust(LIMIT)
    assert client.post("/embed", content=iter([body]) if is_chunked else body).status_code == 200
    assert client.post("/embed", content=iter([body, b" "]) if is_chunked else body + b" ").status_code == 413


def test_a_client_is_not_asked_to_send_a_body_announced_as_too_large(guarded: Server) -> None:
    """curl sends `expect` with a body of more than a megabyte, and waits to be told to send it."""
    head = f"POST /embed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\nexpect: 100-continue\r\n"
    with guarded.connect() as connection:
        connection.sendall(f"{head}content-length: {LIMIT + 1}\r\n\r\n".encode())
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")
    with guarded.connect() as connection:
        connection.sendall(f"{head}content-length: 15\r\n\r\n".encode())
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert answers(connection, b'{"inputs": "a"}', closing=True).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["content-length", "chunked"])
def test_what_is_sent_after_a_refusal_is_thrown_away(guarded: Server, is_chunked: bool) -> None:
    """A client that sends on has its next request on that connection answered, not the rest of the last one."""
    body = b"GET /info HTTP/1.1\r\n\r\n" * 100_000
    framing = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % len(body)
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    head = b"POST /embed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n%b\r\n\r\n" % (KEY.encode(), framing)
    with guarded.connect() as connection:
        received = answers(connection, head, framed, closing=True)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 200 " in received


@pytest.mark.parametrize(
    "headers",
    [
        "content-length: x",
        "content-length: -1",
        "content-length: 1e3",
        "content-length: 0x0e",
        "content-length: 15, 15",
        "content-length: 99999999999999999999999",
        "content-length:",
        "content-length: 15\r\ncontent-length: 14",
        "content-length: 15\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\n\r\nzz",
        "a b: c",
        "a: b\x01c",
        "no colon",
    ],
)
def test_broken_heads_are_refused_and_the_connection_closed(guarded: Server, headers: str) -> None:
    with guarded.connect() as connection:
        request = (
            f'POST /embed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n{headers}\r\n\r\n{{"inputs": "a"}}'
        )
        received = answers(connection, request.encode())
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in received


def test_pipelined_requests_are_answered_in_order(guarded: Server) -> None:
    key = f"authorization: Bearer {KEY}"
    texts = ["one", "two words", "three more words"]
    parts = [
        request_bytes("/embed", b'{"inputs": "%b"}' % text.encode(), key, f"x-baseten-request-id: {text}")
        for text in texts
    ]
    with guarded.connect() as connection:
        received = answers(connection, b"".join(parts), closing=True).decode()
    places = [received.index(f"x-request-id: {text}\r\n") for text in texts]
    assert places == sorted(places)
    assert received.count("HTTP/1.1 200 ") == len(texts) + 1


def test_http_1_0_is_answered_and_closed(guarded: Server) -> None:
    with guarded.connect() as connection:
        received = answers(connection, b"GET /health HTTP/1.0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")


def test_a_page_of_the_origin_may_call(guarded: Server, client: httpx.Client) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-priority"}
    with guarded.client() as browser:  # which sends no key with this
        preflight = browser.options("/v1/embeddings", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "x-priority" in preflight.headers["access-control-allow-headers"]
    for body, status in (({"input": "a"}, 200), ({"input": ""}, 400)):
        reply = client.post("/v1/embeddings", json=body, headers={"origin": ORIGIN})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, ORIGIN)


def test_a_page_of_another_origin_may_not(client: httpx.Client) -> None:
    asked = {"origin": "https://b.example", "access-control-request-method": "POST"}
    assert client.options("/v1/embeddings", headers=asked).status_code == 400
    reply = client.post("/v1/embeddings", json={"input": "a"}, headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in reply.headers


def test_secrets_stay_out_of_the_log(guarded: Server) -> None:
    assert KEY not in guarded.log


@pytest.mark.parametrize("name", ["Upgrade", "upgrade"])
def test_an_offer_of_http_2_is_ignored(guarded: Server, name: str) -> None:
    body = b'{"inputs": "a"}'
    offer = (f"{name}: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    request = request_bytes("/embed", body, f"Authorization: Bearer {KEY}", *offer)
    with guarded.connect() as connection:
        received = answers(connection, request, closing=True)
    assert received.startswith(b"HTTP/1.1 200")


def test_a_head_without_end_is_refused(guarded: Server) -> None:
    padding = [f"x-{index}: {'a' * 1000}" for index in range(70)]
    request = request_bytes("/embed", b'{"inputs": "a"}', f"Authorization: Bearer {KEY}", *padding)
    with guarded.connect() as connection:
        assert answers(connection, request).startswith(b"HTTP/1.1 431")


def test_a_wrong_method_is_answered_with_the_allowed_one(client: httpx.Client) -> None:
    reply = client.get("/embed")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
