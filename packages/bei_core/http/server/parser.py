"""Parses bytes into requests, one at a time, with httptools; does no I/O.

Each piece of data for httptools ends where a request can end: at an empty line, or at the end of a body of known
length. So httptools never reads into the next request, whose bytes wait until the caller feeds them.
"""

from __future__ import annotations

import httptools

from bei_core.http.limits import MAX_HEAD_BYTES, MAX_HEADERS

_HEADER_BYTES = 160  # the memory of the objects of a header, without its characters

_EMPTY_LINE = b"\r\n\r\n"


class HttpError(Exception):
    """The client sent an invalid or unsupported request. The following bytes cannot be parsed."""

    def __init__(self, status: int, message: str, kind: str = "Validation") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind


class RequestParser:
    """The request that is being read: its head, and the newest parts of its body.

    Each call of `feed` resets all attributes, but keeps the head while the body of the same request continues.
    """

    def __init__(self) -> None:
        self.method = b""
        self.version = ""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []  # names in lower case
        self.head = b""  # the bytes of the head if they came in one piece
        self.keep_alive = False
        self.expects_continue = False  # the client waits for `100 Continue` before it sends the body
        self.fault = ""  # why the head is not valid, although httptools accepts it
        self.parts: list[bytes] = []  # the parts of the body in the last `feed`
        self.has_head = False  # the head is complete
        self.has_end = False  # the request is complete
        self.num_bytes = 0  # an estimate of the memory of the head, or of the framing of the body
        self._parser = httptools.HttpRequestParser(self)
        self._framing = 0  # bytes outside bodies since the last request or the last body byte
        self._body_left = 0  # remaining bytes of a body of known length

    @property
    def is_chunked(self) -> bool:
        """Whether the next bytes belong to a body of unknown length."""
        return self.has_head and not (self.has_end or self._body_left)

    def feed(self, data: bytes, at: int) -> int:
        """Parses data[at:] up to the first position where the request can end, and returns that position.

        Returns `at` if more bytes are needed. Raises HttpError.
        """
        if self.has_end:
            self.has_head = self.has_end = False
            self.headers, self._framing = [], 0
        self.parts = []
        end = self._boundary(data, at)
        if end > at:
            piece = data[at:end]
            if not self.has_head:
                self.head = b"" if self._framing else piece
            self._parse(piece)
            self._check(end - at)
        return end

    def forget_head(self) -> None:
        """Lets go of the head, which would otherwise stay in memory until the next request."""
        self.url, self.head, self.headers = b"", b"", []

    def close(self) -> None:
        """Deletes the httptools parser, to break its reference cycle with this object."""
        del self._parser

    # httptools calls these methods; they only store the values

    def on_message_begin(self) -> None:
        """Resets the head when a request starts."""
        self.url, self.headers = b"", []

    def on_url(self, part: bytes) -> None:
        """Stores a part of the URL."""
        self.url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Stores a header without the spaces after it; ignores a trailer, which comes after the head."""
        if not self.has_head:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Reads the fields of the complete head."""
        self.has_head, self.keep_alive = True, self._parser.should_keep_alive()
        self.method, self.version = self._parser.get_method(), self._parser.get_http_version()
        self._body_left, self.expects_continue, self.fault, num_hosts = 0, False, "", 0
        for name, value in self.headers:
            if name == b"content-length":
                self._body_left = int(value)  # httptools accepts only digits
            elif name == b"host":
                num_hosts += 1
            elif name == b"expect":
                self.expects_continue = value.lower() == b"100-continue" and self.version != "1.0"
            elif name == b"transfer-encoding" and (value.lower(), self.version) != (b"chunked", "1.1"):
                self.fault = "of the transfer codings, only chunked of HTTP/1.1 is supported"
        if self.version not in {"1.0", "1.1"}:
            self.fault = f"the version of the request is {self.version}"
        if num_hosts != 1 and self.version == "1.1":
            self.fault = f"a request must have one header `host`, this one has {num_hosts}"

    def on_body(self, part: bytes) -> None:
        """Stores a part of the body."""
        self.parts.append(part)

    def on_message_complete(self) -> None:
        """Marks the request as complete."""
        self.has_end = True

    def _boundary(self, data: bytes, at: int) -> int:
        """Returns the first position where the request can end; excludes an incomplete empty line at the end."""
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
        """Ignores a client's offer to upgrade to another protocol, as HTTP allows, and continues in HTTP/1.1.

        After an offer, httptools would not parse the body. So a new parser gets the same head without the offer.
        """
        if self.method == b"CONNECT":
            raise HttpError(405, "this server is no proxy, so it does not serve CONNECT", "MethodNotAllowed")
        headers = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        head = [b"%b %b HTTP/%b\r\n" % (self.method, self.url, self.version.encode()), *headers, b"\r\n"]
        self._parser = httptools.HttpRequestParser(self)
        self.has_head = self.has_end = False
        self._parse(b"".join(head))

    def _check(self, num_bytes: int) -> None:
        """Counts the parsed bytes and headers. Raises HttpError if there are too many."""
        num_body_bytes = sum(map(len, self.parts))
        self._framing = num_bytes - num_body_bytes if num_body_bytes else self._framing + num_bytes
        if self._framing > MAX_HEAD_BYTES:
            where = "framing of the body" if self.has_head else "head"
            raise HttpError(431, f"the {where} has more than {MAX_HEAD_BYTES} bytes")
        self.num_bytes = 2 * self._framing + _HEADER_BYTES * len(self.headers)
        if len(self.headers) > MAX_HEADERS:
            raise HttpError(431, f"the request has more than {MAX_HEADERS} headers")
        self._body_left = max(0, self._body_left - num_body_bytes)
