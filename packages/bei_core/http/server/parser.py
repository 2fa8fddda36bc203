"""Bytes to requests, one at a time, over httptools; without input or output of its own.

What httptools is fed ends where a message may end: at an empty line, or where a body of known length is over. So it is
never inside a second message, and later requests stay bytes until the caller feeds them.
"""

from __future__ import annotations

import httptools

from bei_core.http.limits import MAX_HEAD_BYTES, MAX_HEADERS

_EMPTY_LINE = b"\r\n\r\n"


class HttpError(Exception):
    """What the client has sent is not a request that this server reads; nothing that follows can be parsed."""

    def __init__(self, status: int, message: str, kind: str = "Validation") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind


class RequestParser:
    """The request that is being read: its head, and what the last bytes were of its body.

    `feed` sets all of these anew, except for the head of a request whose body goes on.
    """

    def __init__(self) -> None:
        self.method = b""
        self.version = ""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []  # names in lower case
        self.keep_alive = False
        self.expects_continue = False  # the client sends its body once it is asked to
        self.parts: list[bytes] = []  # of the body, from the last bytes fed
        self.has_head = False  # the head is complete
        self.has_end = False  # the request is complete
        self._parser = httptools.HttpRequestParser(self)
        self._framing = 0  # bytes since the last request, or the last byte of a body, that are no byte of a body
        self._body_left = 0  # bytes of a body whose length is known

    def feed(self, data: bytes, at: int) -> int:
        """Parses from `at` to where the request may end; returns where that is, `at` if more bytes are needed first.

        Raises HttpError.
        """
        if self.has_end:
            self.has_head = self.has_end = False
            self.headers, self._framing = [], 0
        self.parts = []
        end = self._boundary(data, at)
        if end > at:
            self._parse(data[at:end])
            self._check(end - at)
        return end

    def close(self) -> None:
        """Lets go of the parser, which refers to this object."""
        del self._parser

    # httptools calls these; they only keep what it says

    def on_message_begin(self) -> None:
        """A request starts."""
        self.url, self.headers = b"", []

    def on_url(self, part: bytes) -> None:
        """A part of the URL."""
        self.url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody reads."""
        if not self.has_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head ends."""
        self.has_head, self.keep_alive = True, self._parser.should_keep_alive()
        self.method, self.version = self._parser.get_method(), self._parser.get_http_version()
        self._body_left, self.expects_continue = 0, False
        for name, value in self.headers:
            if name == b"content-length":
                self._body_left = int(value)  # httptools takes nothing but digits
            elif name == b"expect":
                self.expects_continue = value.lower() == b"100-continue"

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        self.parts.append(part)

    def on_message_complete(self) -> None:
        """The request ends."""
        self.has_end = True

    def _boundary(self, data: bytes, at: int) -> int:
        """Where the request may end at the earliest. The start of an empty line waits for the rest of it."""
        if self._body_left:
            return min(len(data), at + self._body_left)
        found = data.find(_EMPTY_LINE, at)
        if found >= 0:
            end = found + len(_EMPTY_LINE)
        else:
            end = len(data) - next((size for size in (3, 2, 1) if data.endswith(_EMPTY_LINE[:size], at)), 0)
        return min(end, at + MAX_HEAD_BYTES + 1 - self._framing)

    def _parse(self, piece: bytes) -> None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._ignore_offer()
        except httptools.HttpParserError as fault:
            raise HttpError(400, f"this is not HTTP/1.1: {fault}") from fault

    def _ignore_offer(self) -> None:
        """Goes on in HTTP/1.1 with a client that offers another protocol, as a server may.

        httptools takes what follows the head for bytes of that protocol. A new parser, fed the same head without the
        offer, takes it for the body.
        """
        if self.method == b"CONNECT":
            raise HttpError(405, "this server is no proxy, so it does not serve CONNECT", "MethodNotAllowed")
        headers = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        head = [b"%b %b HTTP/%b\r\n" % (self.method, self.url, self.version.encode()), *headers, b"\r\n"]
        self._parser = httptools.HttpRequestParser(self)
        self.has_head = self.has_end = False
        self._parse(b"".join(head))

    def _check(self, num_bytes: int) -> None:
        """Counts the bytes that were parsed. Raises HttpError where they are too many for what they are."""
        num_body_bytes = sum(map(len, self.parts))
        self._framing = num_bytes - num_body_bytes if num_body_bytes else self._framing + num_bytes
        if self._framing > MAX_HEAD_BYTES:
            where = "framing of the body" if self.has_head else "head"
            raise HttpError(431, f"the {where} has more than {MAX_HEAD_BYTES} bytes")
        if len(self.headers) > MAX_HEADERS:
            raise HttpError(431, f"the request has more than {MAX_HEADERS} headers")
        self._body_left = max(0, self._body_left - num_body_bytes)
