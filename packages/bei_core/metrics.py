"""All metrics. Those that text-embeddings-inference has too have the same names, so that dashboards for TEI work."""

from __future__ import annotations

import asyncio
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import get_args

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from bei_core.errors import OverloadCause, RequestError

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = tuple(float(2**power) for power in range(15))

# TEI's counters, whose names do not end with _total.
_TEI_COUNTERS = re.compile(rb"^# TYPE (te_(?:request|embed|predict)_(?:count|success|failure)) gauge$", re.MULTILINE)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class Timings:
    """The time of each stage of one request, in seconds, and the request's size."""

    started: float = field(default_factory=time.perf_counter)
    is_counted: bool = False  # whether `Metrics.received` has counted the request
    model: str = ""  # the name of the model that answered
    operation: str = "embed"  # whose metrics count the inputs: embed or predict
    num_inputs: int = 0
    num_characters: int = 0
    num_tokens: int = 0
    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    result_s: float = 0.0  # from the start of tokenization to the result

    @property
    def total_s(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started


class _Histogram:
    """A histogram of seconds, to which a value can be added several times at once. prometheus_client's adds it once."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self.counts, self.sum = [0] * (len(_SECONDS) + 1), 0.0  # of each bucket; of all values, in seconds
        registry.register(self)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram for a scrape."""
        bounds = map(floatToGoString, (*_SECONDS, float("inf")))
        buckets = list(zip(bounds, map(float, accumulate(self.counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self.sum)


class _InputMetrics:
    """Counts inputs where `Metrics` counts requests. Each input of a request has the times of the whole request."""

    def __init__(self, operation: str, registry: CollectorRegistry) -> None:
        name = f"te_{operation}"
        self.count = Gauge(f"{name}_count", f"Inputs received to {operation}", registry=registry)
        self.success = Gauge(f"{name}_success", f"Inputs answered, to {operation}", registry=registry)
        self.times = {"result_s": _Histogram(f"{name}_duration", "Tokenization to result, seconds", registry)} | {
            f"{stage}_s": _Histogram(f"{name}_{stage}_duration", f"Time of an input's {stage}, seconds", registry)
            for stage in ("tokenization", "queue", "inference")
        }  # by the attribute of Timings


class Metrics:
    """The metrics of one server, in a registry of their own unless one is given (Truss exposes the global one).

    The names of TEI's counters do not end in `_total`, which `prometheus_client` appends to every Counter. So they are
    gauges that only increase, and `render` declares them as counters. Truss's server has its own renderer, which
    declares them as gauges.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._scraped: asyncio.Future[bytes] | None = None  # the last result of `scrape`, or the next one
        if registry is None:  # the global one has these already
            ProcessCollector(registry=self.registry)

        def count(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        def total(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def spread(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=self.registry)

        self._requests = count("te_request_count", "Requests received", "method")
        self._success = count("te_request_success", "Requests answered with a result", "method")
        self._failure = count("te_request_failure", "Requests answered with an error", "err")
        self._duration = spread("te_request_duration", "Whole request, seconds")
        self._tokenization = spread("te_request_tokenization_duration", "Tokenization of a request, seconds")
        self._queue = spread("te_request_queue_duration", "Wait until a request's first batch, seconds")
        self._inference = spread("te_request_inference_duration", "Batches that held a request, seconds")
        self._input_length = spread("te_request_input_length", "Tokens of a request", _COUNTS)
        self._batch_size = spread("te_batch_next_size", "Inputs in a batch", _COUNTS)
        self._batch_tokens = spread("te_batch_next_tokens", "Tokens in a batch", _COUNTS)
        self._queue_size = count("te_queue_size", "Inputs in the queue")
        self._expected_wait = count("bei_expected_wait_seconds", "Expected wait of a request that arrives now, seconds")
        self._busy = total("bei_engine_busy_seconds_total", "Time the engine spent in forward, seconds")
        self._padding = total("bei_padding_tokens_total", "Padding tokens the engine computed")
        self._deduplicated = total("bei_deduplicated_total", "Inputs not computed because their batch had an equal one")
        self._restarts = total("bei_engine_restarts_total", "Times an engine's process was started again")
        self._shared = total(
            "bei_shared_prefix_tokens_total", "Tokens not computed because texts share their first ones"
        )
        self._cancelled = total("bei_request_cancelled_total", "Requests whose client left")
        self._refused = total("bei_request_refused_total", "Requests answered with 429, by the limit", "cause")
        self._inputs = {operation: _InputMetrics(operation, self.registry) for operation in ("embed", "predict")}
        # All series exist from the start, because rate() misses a new series' first increase.
        kinds = {error.kind.lower() for error in RequestError.__subclasses__()}
        self._failures = {kind: self._failure.labels(kind) for kind in kinds}
        self._refusals = {cause: self._refused.labels(cause) for cause in get_args(OverloadCause)}
        self._queues: list[tuple[Callable[[], int], Callable[[], float]]] = []  # one per service
        self._queue_size.set_function(lambda: sum(size() for size, _ in self._queues))
        self._expected_wait.set_function(lambda: max((wait_s() for _, wait_s in self._queues), default=0.0))
        self._methods = {m: (self._requests.labels(m), self._success.labels(m)) for m in ("single", "batch")}
        self._refused_requests = self._requests.labels("refused")

    def watch_queue(self, size: Callable[[], int], wait_s: Callable[[], float] = float) -> None:
        """Reads the size and the expected wait (seconds) of a queue at each scrape.

        The metrics are the sum of the sizes of all queues, and the longest of their waits.
        """
        self._queues.append((size, wait_s))

    def received(self, num_inputs: int, operation: str) -> None:
        """Count an accepted request, and its inputs under the operation, which is embed or predict."""
        self._methods["single" if num_inputs == 1 else "batch"][0].inc()
        self._inputs[operation].count.inc(num_inputs)

    def succeeded(self, timings: Timings) -> None:
        """Count a request that was answered with a result, and its inputs."""
        self._methods["single" if timings.num_inputs == 1 else "batch"][1].inc()
        self._duration.observe(timings.total_s)
        self._tokenization.observe(timings.tokenization_s)
        self._queue.observe(timings.queue_s)
        self._inference.observe(timings.inference_s)
        self._input_length.observe(timings.num_tokens)
        inputs = self._inputs[timings.operation]
        inputs.success.inc(timings.num_inputs)
        for stage, histogram in inputs.times.items():
            seconds = getattr(timings, stage)
            histogram.counts[bisect_left(_SECONDS, seconds)] += timings.num_inputs
            histogram.sum += seconds * timings.num_inputs

    def failed(self, kind: str, *, is_counted: bool) -> None:
        """Count a request that was answered with an error of this kind.

        Unless `received` has counted it, it is also counted as a request, so that failures are a share of the requests.
        """
        if not is_counted:
            self._refused_requests.inc()
        (self._failures.get(kind) or self._failure.labels(kind)).inc()

    def refused(self, cause: OverloadCause) -> None:
        """Count a request that was answered with 429 because of this limit."""
        self._refusals[cause].inc()

    def cancelled(self) -> None:
        """Count a request whose client closed the connection before the reply."""
        self._cancelled.inc()

    def batch(self, size: int, num_tokens: int, seconds: float, padding_share: float) -> None:
        """Count a batch; `padding_share` (0 to 1) is the share of padding in the tokens that the engine computed."""
        self._batch_size.observe(size)
        self._batch_tokens.observe(num_tokens)
        self._busy.inc(seconds)
        self._padding.inc(num_tokens * padding_share / (1 - padding_share))

    def shared(self, num_tokens: int) -> None:
        """Count tokens that were not computed, because inputs of their batch have the same first tokens."""
        self._shared.inc(num_tokens)

    def deduplicated(self, count: int) -> None:
        """Count inputs that were not computed, because their batch had an equal one."""
        self._deduplicated.inc(count)

    def engine_restarted(self) -> None:
        """Count a process of an engine that was started again."""
        self._restarts.inc()

    async def scrape(self) -> bytes:
        """Returns what `render` does. Calls of the same turn of the event loop share one result, which takes 2 ms."""
        loop = asyncio.get_running_loop()
        if self._scraped is None or self._scraped.done() or self._scraped.get_loop() is not loop:
            self._scraped = loop.create_future()
            loop.call_soon(self._render_into, self._scraped)
        return await asyncio.shield(self._scraped)

    def _render_into(self, scraped: asyncio.Future[bytes]) -> None:
        try:
            scraped.set_result(self.render())
        except Exception as error:
            scraped.set_exception(error)

    def render(self) -> bytes:
        """Returns the metrics in Prometheus' text format."""
        return _TEI_COUNTERS.sub(rb"# TYPE \1 counter", generate_latest(self.registry))


@cache
def shared_metrics() -> Metrics:
    """Returns the metrics in prometheus_client's global registry, which Truss exposes; it accepts a name only once."""
    return Metrics(REGISTRY)
