"""A file server on loopback that can fail as real ones do: cut replies, no ranges, changed files, web pages."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit


@dataclass
class File:
    """The file at a path."""

    data: bytes = b""
    kind: str = "application/gzip"
    token: str | None = None  # needed to read it
    location: str | None = None  # where it is instead
    status: int | None = None  # an error, in its place
    has_etag: bool = True
    modified: str | None = None
    ranges: bool = True  # whether Range is honoured
    sized: bool = True  # whether Content-Length is sent
    cuts: list[int] = field(default_factory=list)  # bytes after which each of the next replies breaks off


@dataclass
class Request:
    """A received request."""

    path: str
    headers: dict[str, str]
    sent: int = 0  # bytes of the body that were written


class Web:
    """The server, running between `with` and its end."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Web:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def stop(self) -> None:
        """Closes the port; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    """A handler class bound to the server, as http.server makes its own instances."""

    class Handler(_Handler):
        served = web

    return Handler


class _Handler(BaseHTTPRequestHandler):
    """One request, and a connection for each."""

    protocol_version = "HTTP/1.0"
    served: Web

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        asked = Request(path, dict(self.headers))
        self.served.requests.append(asked)
        file = self.served.files.get(path)
        if file is None:
            self.send_error(404)
        elif file.location is not None:
            self._head(302, {"Location": file.location, "Content-Length": "0"})
        elif file.token is not None and self.headers["Authorization"] != f"Bearer {file.token}":
            self.send_error(401)
        elif file.status is not None:
            self.send_error(file.status)
        else:
            self._send(file, asked)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log nothing: `Web.requests` has all requests."""

    def _send(self, file: File, asked: Request) -> None:
        etag = f'"{hashlib.sha256(file.data).hexdigest()[:16]}"' if file.has_etag else None
        validators = {"ETag": etag, "Last-Modified": file.modified}
        headers = {"Content-Type": file.kind, **{name: value for name, value in validators.items() if value}}
        begin = self._begin(file, {etag, file.modified})
        if begin is not None and begin >= len(file.data):
            self.send_error(416)
            return
        if begin is not None:
            headers["Content-Range"] = f"bytes {begin}-{len(file.data) - 1}/{len(file.data)}"
        body = file.data[begin or 0 :]
        if file.sized:
            headers["Content-Length"] = str(len(body))
        self._head(200 if begin is None else 206, headers)
        cut = file.cuts.pop(0) if file.cuts else len(body)
        try:
            self.wfile.write(body[:cut])
        except ConnectionError:  # the client has seen enough
            return
        asked.sent = min(cut, len(body))

    def _begin(self, file: File, validators: set[str | None]) -> int | None:
        """The first byte of the range that was asked for and may be sent."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        fits = self.headers["If-Range"] is None or self.headers["If-Range"] in validators
        return int(found[1]) if found and file.ranges and fits else None

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
