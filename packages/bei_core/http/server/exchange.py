"""One request and its reply, as an ASGI application sees them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
import msgspec
from starlette.types import ASGIApp, Message, Scope

from bei_core.http.disconnects import Watch
from bei_core.http.limits import MAX_URL_BYTES, BodyLease
from bei_core.http.replies import retry_lines
from bei_core.http.server.parser import HttpError, RequestParser

log = logging.getLogger(__name__)

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_BODYLESS = frozenset({204, 304})


class Link(Protocol):
    """The methods of a connection that an exchange calls."""

    @property
    def date(self) -> bytes:
        """The Date header of replies, as a whole line."""

    @property
    def is_draining(self) -> bool:
        """Whether the server is draining, so that this reply is the last one."""

    @property
    def writable(self) -> asyncio.Event:
        """An event that is set while bytes may be written; also set once the client has disconnected."""

    def write(self, parts: Sequence[bytes]) -> None:
        """Sends bytes."""

    def took_body(self) -> None:
        """Called when the application has taken the buffered bytes of the body."""

    def replied(self) -> None:
        """Called when the reply is complete."""

    def failed(self) -> None:
        """Called when the application has failed before or during its reply."""

    def abort(self) -> None:
        """Closes the connection at once."""


class Exchange:
    """The state of one request and its reply. Its `receive` and `send` are ASGI's."""

    __slots__ = (
        "_body", "_changed", "_expects_continue", "_gone", "_handed_over", "_head", "_is_chunked", "_left", "_link",
        "_sends_body", "is_complete", "is_replied", "is_started", "keep_alive", "lease", "scope", "watch",
    )  # fmt: skip

    def __init__(self, link: Link, scope: Scope, lease: BodyLease, *, keep_alive: bool, expects_continue: bool) -> None:
        self.scope = scope
        self.lease = lease
        self.keep_alive = keep_alive
        self.is_complete = False  # the whole request is received
        self.is_started = False  # the application has begun to reply
        self.is_replied = False  # the whole reply is written
        self.watch = Watch()
        self._link = link
        self._expects_continue = expects_continue
        self._gone = False  # the client has disconnected, or the server has refused the request
        self._body = bytearray()  # what the application has not taken yet
        self._handed_over = False  # the application has received the end of the body
        self._changed: asyncio.Event | None = None
        self._head = b""
        self._sends_body = True
        self._is_chunked = False
        self._left: int | None = None  # bytes of the reply still to send; None without content-length

    @property
    def num_unread(self) -> int:
        """Bytes of the body that the application has not taken yet."""
        return len(self._body)

    def add_body(self, parts: Iterable[bytes]) -> None:
        """Adds parts of the body; ignores them after the reply. Raises OverloadedError if the budget is exceeded."""
        if self.is_replied or self._gone:
            return
        body = b"".join(parts)  # a client can send 10,000 chunks of one byte at once
        self.lease.grow(len(body))
        self._body += body
        self._wake()

    def complete(self) -> None:
        """Marks the body as complete."""
        self.is_complete = True
        self.lease.complete()
        self._wake()

    def leave(self) -> None:
        """Tells the application that the client has disconnected."""
        self._gone = True
        self._body.clear()
        self._wake()
        self.watch.leave()

    async def run(self, app: ASGIApp) -> None:
        """Runs the application. If it raises an error, `Link.failed` replies or closes."""
        try:
            await app(self.scope, self.receive, self.send)
            if not (self.is_replied or self._gone):
                raise RuntimeError("this is a bug: the application has returned without a whole reply")
        except (asyncio.CancelledError, SystemExit, KeyboardInterrupt):
            self._link.abort()
            raise
        except BaseException:  # also catches a panic in Rust, which is not an Exception
            log.exception("this is a bug: %s %r failed", self.scope["method"], self.scope["path"])
            self._link.failed()
        finally:
            self.lease.release()

    async def receive(self) -> Message:
        """Returns the next part of the body; after the last one, waits for a disconnect or the end of the reply."""
        if self._expects_continue and not self.is_started:
            self._expects_continue = False
            self._link.write([b"HTTP/1.1 100 Continue\r\n\r\n"])
        while not (self._gone or self.is_replied):
            if self._body or (self.is_complete and not self._handed_over):
                body, self._body, self._handed_over = bytes(self._body), bytearray(), self.is_complete
                self._link.took_body()
                return {"type": "http.request", "body": body, "more_body": not self.is_complete}
            self._changed = self._changed or asyncio.Event()
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Sends the head of the reply or a part of its body. The head is sent with the first part of the body."""
        if not self._link.writable.is_set():
            await self._link.writable.wait()
        if self._gone:
            return
        if message["type"] == "http.response.start" and not self.is_started:
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body" and self.is_started and not self.is_replied:
            self._write(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"this is a bug: {message['type']} is sent at the wrong time")

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        closes = False
        lines = [STATUS_LINES[status], self._link.date]
        for name, value in headers:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                closes = b"close" in value.lower()
            lines.append(b"%b: %b\r\n" % (name, value))
        is_asked_for = self._expects_continue and not self.is_complete  # the client may or may not send the body
        self.keep_alive = self.keep_alive and not (closes or is_asked_for or self._link.is_draining)
        if not (self.keep_alive or closes):
            lines.append(b"connection: close\r\n")
        self._sends_body = self.scope["method"] != "HEAD" and status not in _BODYLESS
        if self._left is None and self._sends_body:
            self._is_chunked = self.scope["http_version"] != "1.0"
            lines.append(b"transfer-encoding: chunked\r\n" if self._is_chunked else b"")
            self.keep_alive = self.keep_alive and self._is_chunked
        self._head = b"".join(lines)
        if not len(lines) - lines.count(b"") == self._head.count(b"\n") == self._head.count(b"\r"):
            raise RuntimeError("this is a bug: a header of the reply has a line break in it")
        self.is_started = True

    def _write(self, body: bytes, *, more: bool) -> None:
        parts = [self._head, b"\r\n"] if self._head else []
        self._head = b""
        if self._sends_body:
            parts += self._framed(body, more=more)
        self.lease.shrink(max(0, self.lease.num_bytes - len(body)) if more else 0)  # the connection counts it
        if parts:
            self._link.write(parts)
        if not more:
            self.is_replied = True
            self._body.clear()
            self._wake()
            self._link.replied()

    def _framed(self, body: bytes, *, more: bool) -> list[bytes]:
        """Returns a part of the body with its framing. Raises RuntimeError if it does not match content-length."""
        if self._is_chunked:
            return [*((b"%x\r\n" % len(body), body, b"\r\n") if body else ()), *(() if more else (b"0\r\n\r\n",))]
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left > 0 and not more):
                raise RuntimeError("this is a bug: a reply is not as long as its content-length says")
        return [body]

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()


class Refused:
    """A request that was answered by a refusal: the rest of its body is read and discarded."""

    __slots__ = ("keep_alive",)
    is_started = is_replied = True
    num_unread = 0

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    def add_body(self, parts: Iterable[bytes]) -> None:
        """Discards parts of the body."""

    def complete(self) -> None:
        """The body is complete."""

    def leave(self) -> None:
        """The client has disconnected."""


def scope_of(parser: RequestParser, server: tuple[Any, ...] | None, client: tuple[Any, ...] | None) -> Scope:
    """Returns the ASGI scope of a request whose head is parsed. Raises HttpError for a bad head or a too long URL."""
    if parser.fault:
        raise HttpError(400, f"this is not HTTP/1.1: {parser.fault}")
    if len(parser.url) > MAX_URL_BYTES:
        raise HttpError(414, f"the URL of the request has more than {MAX_URL_BYTES} bytes")
    try:
        url = httptools.parse_url(parser.url)
        raw_path = url.path or b"/"  # http://host has none
        path = raw_path.decode("ascii")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError) as fault:
        raise HttpError(400, "the URL of the request is not valid") from fault
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": parser.version,
        "server": server,
        "client": client,
        "scheme": "http",
        "root_path": "",
        "method": parser.method.decode("ascii"),
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": url.query or b"",
        "headers": parser.headers,
    }


def error_reply(status: int, message: str, kind: str, retry_after_s: int | None, date: bytes) -> bytes:
    """Returns the bytes of a whole error reply, in the format for errors without a route."""
    body = msgspec.json.encode({"error": message, "error_type": kind})
    lines = [
        STATUS_LINES[status],
        date,
        b"content-type: application/json\r\n",
        b"content-length: %d\r\n" % len(body),
        b"" if retry_after_s is None else retry_lines(retry_after_s),
        b"connection: close\r\n\r\n",
        body,
    ]
    return b"".join(lines)
