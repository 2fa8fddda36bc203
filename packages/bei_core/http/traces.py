"""Trace spans of requests, sent to a collector in the OpenTelemetry protocol over HTTP (OTLP).

A span is created from the `Timings` of a request when the request has ended. A thread of the OpenTelemetry SDK sends
the spans; the environment variables OTEL_* configure sampling, batching, headers and certificates.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError, EngineError, RequestError
from bei_core.http.version import bei_version
from bei_core.storage.backends import redact

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

    from bei_core.http.route import Call

log = logging.getLogger(__name__)

# How long the server waits for unsent spans when it shuts down.
_CLOSE_S = 3.0

# Loggers of the SDK to limit. `_LOUD` write a line for every batch while the collector is unreachable, and for every
# dropped span; `_LOUD_ABOUT_CLIENTS` report malformed headers of clients. Each group has its own limit, so that clients
# cannot suppress messages about the collector.
_LOUD = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
_LOUD_ABOUT_CLIENTS = ("opentelemetry.trace.propagation.tracecontext", "opentelemetry.trace.span")
_REPEAT_S = 60.0

# The methods that OpenTelemetry defines. Others are recorded as `_OTHER`, because some servers (h11) accept any word as
# a method, and clients must not choose the text in spans.
_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

_PATH = "/v1/traces"
_GRPC_PORT = 4317


class Traces:
    """Records one span for each request."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("bei_core", bei_version())
        self._extract, self._root = TraceContextTextMapPropagator().extract, Context()
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def record(self, call: Call, status: int, error: RequestError | None) -> None:
        """Records the span of a request that ends now, as a child of the span in its `traceparent` header.

        The request's id is the only text in the span that a client can choose. Unknown paths and error messages, which
        may quote the request, are left out.
        """
        end_ns = time.time_ns()
        method, route = call.method if call.method in _METHODS else "_OTHER", call.route
        span = self._tracer.start_span(
            method if route is None else f"{method} {route.path}",
            # Does not use the current context: Truss's server puts a span there that may never be exported.
            self._extract(call.request.headers, self._root),
            self._kind,
            {
                "http.request.method": method,
                "url.scheme": call.request.scope.get("scheme", "http"),
                **({} if route is None else {"http.route": route.path}),
            },
            start_time=end_ns - int(call.timings.total_s * 1e9),
        )
        if span.is_recording():  # the span is sampled
            span.set_attributes(_outcome(call, status, error))
            # OpenTelemetry counts a 4xx as the client's error, but a 424 is the server's error if the engine failed.
            if status >= 500 or isinstance(error, EngineError):
                span.set_status(self._failed)
        span.end(end_ns)

    def close(self) -> None:
        """Sends the remaining spans; waits at most `_CLOSE_S` seconds."""
        closing = threading.Thread(target=self._provider.shutdown, name="bei-traces", daemon=True)
        try:
            closing.start()
        except RuntimeError as fault:
            log.warning("the last spans are lost: %s", fault)
            return
        closing.join(_CLOSE_S)
        if closing.is_alive():
            log.warning("the trace collector did not accept the last spans within %.0f s; they are lost", _CLOSE_S)


def open_traces(settings: Settings) -> Traces | None:
    """Returns a recorder of spans; None if `otlp_endpoint` is not set. Sends nothing yet.

    Raises ConfigError if the endpoint is not a URL, if the OpenTelemetry SDK is not installed, or if the SDK rejects an
    OTEL_* variable.
    """
    if settings.otlp_endpoint is None:
        return None
    url = traces_url(settings.otlp_endpoint)
    try:
        traces = Traces(_provider(url, settings.otlp_service_name))
    except ImportError as fault:
        raise ConfigError(
            "otlp_endpoint needs OpenTelemetry's SDK: pip install 'bei-core[otlp]' "
            f"(or pip install opentelemetry-exporter-otlp-proto-http). {fault}"
        ) from fault
    except ValueError as fault:
        raise ConfigError(f"OpenTelemetry's SDK refuses the OTEL_* variables that are set: {fault}") from fault
    for names, seldom in ((_LOUD, _SELDOM), (_LOUD_ABOUT_CLIENTS, _SELDOM_ABOUT_CLIENTS)):
        for name in names:
            logging.getLogger(name).addFilter(seldom)
    log.info("a trace of each request goes to %s", redact(url))
    return traces


def traces_url(endpoint: str) -> str:
    """Returns the URL for spans: `endpoint` with `/v1/traces` appended if missing, as for OTEL_EXPORTER_OTLP_ENDPOINT.

    Logs a warning for port 4317, which collectors use for gRPC. Raises ConfigError if `endpoint` is not a URL with a
    host.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None:  # the error does not quote the URL, because it may contain a password
        raise ConfigError(
            "otlp_endpoint must be a URL with a host and, if any, a port up to 65535, as in http://collector:4318"
        )
    if port == _GRPC_PORT:
        log.warning(
            "otlp_endpoint %s: collectors use port 4317 for gRPC; BEI sends OTLP over HTTP, usually port 4318",
            redact(endpoint),
        )
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(_PATH) else path + _PATH))


def _provider(url: str, service_name: str) -> TracerProvider:
    """Returns the SDK's tracer provider that posts spans to `url`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": service_name, "service.version": bei_version()})
    # `merge` gives OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES precedence; `create` would not.
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider


def _outcome(call: Call, status: int, error: RequestError | None) -> dict[str, AttributeValue]:
    """Returns the span attributes of an ended request, with OpenTelemetry's names where they exist; times are in ms."""
    timings = call.timings
    found: dict[str, AttributeValue] = {"http.response.status_code": status, "bei.request_id": call.request_id}
    if error is not None:
        found["error.type"] = error.kind
    if timings.num_inputs:
        found |= {
            "gen_ai.response.model": timings.model,
            "gen_ai.usage.input_tokens": timings.num_tokens,
            "bei.num_inputs": timings.num_inputs,
            "bei.tokenization_ms": timings.tokenization_s * 1e3,
            "bei.queue_ms": timings.queue_s * 1e3,
            "bei.inference_ms": timings.inference_s * 1e3,
        }
    return found


class _Seldom(logging.Filter):
    """A log filter that passes at most one record per minute."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether to write the record."""
        is_due = record.created - self._last >= _REPEAT_S
        if is_due:
            self._last = record.created
        return is_due


_SELDOM, _SELDOM_ABOUT_CLIENTS = _Seldom(), _Seldom()
