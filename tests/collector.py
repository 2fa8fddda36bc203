"""An OpenTelemetry collector on loopback: decodes the spans that it receives, and can delay or refuse them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.fakes import SAFETY_S


@dataclass(frozen=True)
class Span:
    """A received span, with its attributes and those of its resource as plain values."""

    name: str
    trace_id: str
    parent_id: str  # empty for a root span
    kind: int
    seconds: float
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """The server, which runs inside its `with` block. It delays its replies between `hold` and `release`."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.spans: list[Span] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.received = threading.Semaphore(0)  # released once for each request
        self._open = threading.Event()
        self._open.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The value for the setting `otlp_endpoint`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def hold(self) -> None:
        """Delays all replies from now on."""
        self._open.clear()

    def release(self) -> None:
        """Sends the delayed replies, and does not delay further ones."""
        self._open.set()

    def wait(self, num_requests: int = 1) -> None:
        """Waits for this many further requests."""
        for _ in range(num_requests):
            assert self.received.acquire(timeout=SAFETY_S), "the server sent no spans"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Records a request; returns the status of the reply."""
        self.paths.append(path)
        self.headers.append(headers)
        sent = ExportTraceServiceRequest.FromString(body)
        for group in sent.resource_spans:
            resource = _plain(group.resource.attributes)
            self.spans += [_span(span, resource) for scope in group.scope_spans for span in scope.spans]
        self.received.release()
        self._open.wait(SAFETY_S)
        return self.status


def _span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_plain(span.attributes),
        resource=resource,
    )


def _plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = collector.take(self.path, {name.lower(): text for name, text in self.headers.items()}, body)
            try:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()
            except OSError:
                self.close_connection = True  # the client has disconnected

        def log_message(self, *parts: object) -> None:
            """Does not log."""

    return Handler
