"""A span for every request, sent to a collector in OpenTelemetry's protocol over HTTP (OTLP).

A span is made when the request has ended, from its `Timings`. A thread of OpenTelemetry's SDK sends the spans; its
variables OTEL_* configure sampling, batching, headers and certificates.
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
from bei_core.http.route import Call
from bei_core.http.version import bei_version
from bei_core.storage.backends import redact

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

log = logging.getLogger(__name__)

# How long the server waits at its end for the spans that are not sent yet.
_CLOSE_S = 3.0

# Loggers of the SDK that write a line for every batch while the collector is out of reach and for every dropped span;
# and loggers of faults in clients' headers. The two are limited separately, so that clients cannot hide the former.
_LOUD = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
_LOUD_ABOUT_CLIENTS = ("opentelemetry.trace.propagation.tracecontext", "opentelemetry.trace.span")
_REPEAT_S = 60.0

# The methods that OpenTelemetry knows. With a server that accepts any word as a method (h11), clients would choose it.
_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

_PATH = "/v1/traces"
_GRPC_PORT = 4317


class Traces:
    """Records the spans of requests."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("bei_core", bei_version())
        self._extract, self._root = TraceContextTextMapPropagator().extract, Context()
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def record(self, call: Call, status: int, error: RequestError | None) -> None:
        """Hands over the span of a request that ends now, as a child of the span in its `traceparent` header.

        It contains nothing that the client chose freely, except the request's id: no path without a route, and no error
        text, which may repeat parts of the request.
        """
        end_ns = time.time_ns()
        method, route = call.method if call.method in _METHODS else "_OTHER", call.route
        span = self._tracer.start_span(
            method if route is None else f"{method} {route.path}",
            # Not the current context, which under Truss's server has a span that may never be exported.
            self._extract(call.request.headers, self._root),
            self._kind,
            {
                "http.request.method": method,
                "url.scheme": call.request.scope.get("scheme", "http"),
                **({} if route is None else {"http.route": route.path}),
            },
            start_time=end_ns - int(call.timings.total_s * 1e9),
        )
        if span.is_recording():  # sampled
            span.set_attributes(_outcome(call, status, error))
            # By the conventions a 4xx is the client's fault, but 424 is ours if the engine failed.
            if status >= 500 or isinstance(error, EngineError):
                span.set_status(self._failed)
        span.end(end_ns)

    def close(self) -> None:
        """Sends the remaining spans; takes at most `_CLOSE_S`."""
        closing = threading.Thread(target=self._provider.shutdown, name="bei-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        if closing.is_alive():
            log.warning("the trace collector did not accept the last spans within %.0f s; they are lost", _CLOSE_S)


def open_traces(settings: Settings) -> Traces | None:
    """A recorder of spans; None if the settings name no collector. Sends nothing yet.

    Raises ConfigError if the endpoint is no URL, if OpenTelemetry's SDK is missing (with the pip command), and for an
    OTEL_* variable that the SDK refuses.
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
    """The URL for spans: `endpoint` with `/v1/traces` at its end, as for OTEL_EXPORTER_OTLP_ENDPOINT.

    Warns of port 4317, which collectors use for gRPC. Raises ConfigError if it is not a URL with a host.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None:  # the error does not repeat the URL, which may contain a password
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
    """The SDK's provider that posts spans to `url`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": service_name, "service.version": bei_version()})
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence; in `create` they would not.
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider


def _outcome(call: Call, status: int, error: RequestError | None) -> dict[str, AttributeValue]:
    """The attributes of a request that has ended, by OpenTelemetry's names if it has any; times in milliseconds."""
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
    """Passes one log record per minute."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record."""
        is_due = record.created - self._last >= _REPEAT_S
        if is_due:
            self._last = record.created
        return is_due


_SELDOM, _SELDOM_ABOUT_CLIENTS = _Seldom(), _Seldom()
