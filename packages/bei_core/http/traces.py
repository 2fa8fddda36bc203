"""A span for every request, sent to a collector in OpenTelemetry's protocol over HTTP (OTLP).

Spans are made when a request is over, from what `Timings` measured, and are sent by a thread of the SDK's. Its own
OTEL_* variables say what is sampled, how spans are batched, with which headers and certificates they are sent.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from starlette.requests import Request

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError, EngineError, RequestError
from bei_core.http.responses import request_id
from bei_core.http.routes import Route, bei_version
from bei_core.metrics import Timings
from bei_core.storage.drivers import redact

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

log = logging.getLogger(__name__)

# How long the end of the server may be held up by what has yet to be sent.
_CLOSE_S = 3.0

# The SDK's loggers that write lines for each batch while a collector is out of reach, or for each span that is dropped;
# and those that repeat what is wrong with a caller's headers, held down apart, lest callers hide the others.
_LOUD = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
_LOUD_OF_CALLERS = ("opentelemetry.trace.propagation.tracecontext", "opentelemetry.trace.span")
_REPEAT_S = 60.0

# OpenTelemetry's. Where the server lets any word through as a method (h11 does), others would be a caller's own text.
_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

_PATH = "/v1/traces"
_GRPC_PORT = 4317


class Traces:
    """Where the spans of requests go."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("bei_core", bei_version())
        self._extract, self._root = TraceContextTextMapPropagator().extract, Context()
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def record(
        self,
        request: Request,
        method: str,
        route: Route | None,
        status: int,
        timings: Timings,
        error: RequestError | None,
    ) -> None:
        """Hands over the span of a request that ends now, child of its `traceparent`.

        Nothing else of what was sent is in it but an id: no path, where callers may write what they like, and no
        error's text, which may repeat that.
        """
        end_ns = time.time_ns()
        method = method if method in _METHODS else "_OTHER"
        place = {"http.route": route.path} if route is not None else {}
        span = self._tracer.start_span(
            f"{method} {route.path}" if route is not None else method,
            # Without the current context, where under Truss's server there is a span that nobody may ever export.
            self._extract(request.headers, self._root),
            self._kind,
            {
                "http.request.method": method,
                "url.scheme": request.scope.get("scheme", "http"),
                **place,
            },
            start_time=end_ns - int(timings.total_s * 1e9),
        )
        if span.is_recording():  # else it is not sampled
            span.set_attributes(_outcome(request, status, timings, error))
            # A 4xx is the caller's fault, by the conventions; 424 is ours where the engine failed.
            if status >= 500 or isinstance(error, EngineError):
                span.set_status(self._failed)
        span.end(end_ns)

    def close(self) -> None:
        """Sends what is left, for as long as `_CLOSE_S` at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="bei-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        if closing.is_alive():
            log.warning("the collector of traces has not taken the last ones within %.0f s; they are lost", _CLOSE_S)


def open_traces(settings: Settings) -> Traces | None:
    """What records the requests of a server; None where the settings name no collector.

    Nothing is sent yet. Raises ConfigError for an endpoint that is no URL, with the pip command where OpenTelemetry's
    SDK is missing, and for an OTEL_* variable that it refuses.
    """
    if settings.otlp_endpoint is None:
        return None
    url = traces_url(settings.otlp_endpoint)
    try:
        traces = Traces(_provider(url))
    except ImportError as fault:
        raise ConfigError(
            "otlp_endpoint needs OpenTelemetry's SDK: pip install 'bei-core[otlp]' "
            f"(or pip install opentelemetry-exporter-otlp-proto-http). {fault}"
        ) from fault
    except ValueError as fault:
        raise ConfigError(f"OpenTelemetry's SDK refuses the OTEL_* variables that are set: {fault}") from fault
    for names, seldom in ((_LOUD, _SELDOM), (_LOUD_OF_CALLERS, _SELDOM_OF_CALLERS)):
        for name in names:
            logging.getLogger(name).addFilter(seldom)
    log.info("a trace of each request goes to %s", redact(url))
    return traces


def traces_url(endpoint: str) -> str:
    """Where spans are posted: `endpoint`, with `/v1/traces` unless it ends so, as OTEL_EXPORTER_OTLP_ENDPOINT is taken.

    Port 4317 is worth a warning: that is where collectors speak gRPC. Raises ConfigError for what is no URL of a host.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None:  # said without the URL or the fault, which may have a password
        raise ConfigError(
            "otlp_endpoint must be a URL with a host and, if any, a port up to 65535, as in http://collector:4318"
        )
    if port == _GRPC_PORT:
        log.warning(
            "otlp_endpoint %s: port 4317 is where collectors take OTLP over gRPC; BEI sends it over HTTP, mostly 4318",
            redact(endpoint),
        )
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(_PATH) else path + _PATH))


def _provider(url: str) -> TracerProvider:
    """The SDK, set up to post spans to `url`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": "bei", "service.version": bei_version()})
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win, which `create` lets anything win over.
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider


def _outcome(request: Request, status: int, timings: Timings, error: RequestError | None) -> dict[str, AttributeValue]:
    """What became of a request, by OpenTelemetry's names where it has any; times in ms, as the headers have them."""
    found: dict[str, AttributeValue] = {"http.response.status_code": status, "bei.request_id": request_id(request)}
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
    """Lets one record a minute through."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        is_due = record.created - self._last >= _REPEAT_S
        if is_due:
            self._last = record.created
        return is_due


_SELDOM, _SELDOM_OF_CALLERS = _Seldom(), _Seldom()
