"""More load than the server can compute: open loop, so that clients do not slow down with the server.

The server has one processor and all clients have another, so that these take nothing from the server. Goodput is
compared with the mean of two peaks, just before and just after, because the speed of a virtual machine changes by 10%
within minutes. A peak is measured with the same generator, as 48 clients in a closed loop, and the same health probe;
where each request of a load has a connection of its own, those of its peaks have, too.
Where large requests come too, goodput counts time of the engine: each of them is the seconds that it takes alone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from bei_core.bench.client import Load, Outcome, drive
from bei_core.bench.workload import Wire, texts
from benchmarks.chaos.probe import HEALTH, quantile_of, running, watched
from benchmarks.chaos.table import Row
from tests.e2e.server import Server, ask, openai_request

MAX_QUEUE_WAIT_S = 2.0
DEADLINE_S = 0.5
_MAX_HEALTH_MS = 100.0
_MIN_GOODPUT = 0.95
_REFUSED_MS = 100.0  # "at once": the p99 of a 429
_CLOSED_LOOP = 48  # clients: full batches, and none of them is refused
_CONNECTIONS = 2000
_PROBE_EVERY_S = 0.05

LATE = "deadlines of 500 ms at 3 times the capacity"
_LARGE = 64  # different texts of a large request, each as long as the model takes
_NUM_LARGE_CLIENTS = 2


class Overload(NamedTuple):
    """A load of `factor` times the peak."""

    factor: float
    is_closing: bool = False  # each request has a connection of its own
    has_large: bool = False  # other clients send large requests, one after the other

    @property
    def name(self) -> str:
        """The name of its row."""
        how = ", a connection for each request" if self.is_closing else ""
        beside = f", {_NUM_LARGE_CLIENTS} clients send {_LARGE} long texts at a time" if self.has_large else ""
        return (
            f"{self.factor:g} times the capacity, texts of mixed lengths{how}{beside}, "
            f"max_queue_wait_s = {MAX_QUEUE_WAIT_S:g}"
        )


OVERLOADS = (Overload(5.0), Overload(8.0), Overload(5.0, is_closing=True), Overload(5.0, has_large=True))


@dataclass
class Refusals:
    """What a client saw that sends one request after the other."""

    delays_ms: list[float] = field(default_factory=list)  # of the 429s
    retry_after_s: list[int] = field(default_factory=list)


@dataclass
class Larges:
    """What clients of large requests saw."""

    alone_s: float = 0.0  # of a request without other load
    counts: Counter[int] = field(default_factory=Counter)  # by status
    spans: list[tuple[float, float]] = field(default_factory=list)  # begin and end of the 200s

    def busy_s(self, began: float, ended: float) -> float:
        """Seconds of the engine that these requests took within a time, spread evenly over each of them."""
        overlaps = ((min(end, ended) - max(start, began)) / (end - start) for start, end in self.spans)
        return self.alone_s * sum(max(0.0, overlap) for overlap in overlaps)

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest 200."""
        return max((end - start for start, end in self.spans), default=0.0)


class Loaded:
    """A server on the first processor; the generator uses the last one."""

    def __init__(self, folder: Path, seed: int) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        self._all_cpus, self._cpus = cpus, cpus[-1:]
        prefix = ("taskset", "-c", str(cpus[0]))
        self._server = Server(folder / "loaded", folder / "cache", prefix, max_queue_wait_s=MAX_QUEUE_WAIT_S)
        self._requests = Wire(host="a").requests(texts("mixed", 5000, seed))
        self._large_request = openai_request(texts("long", _LARGE, seed))
        self.peak = 0.0  # requests a second
        self._is_closing = False  # the requests of that peak had a connection each
        self._open_peak = 0.0  # the last peak on connections that stay open
        self._peak_share = 0.0  # of its processor that the server used then

    def __enter__(self) -> Loaded:
        self._server.__enter__()
        os.sched_setaffinity(0, self._cpus)  # the probes run in this process
        self._drive(self._requests, 300)
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._all_cpus)
        self._server.__exit__(None, None, None)

    def measure_peak(self, seconds: float, *, is_closing: bool = False) -> None:
        """Measures the requests a second of a closed loop for about so many seconds."""
        requests = self._requests_for(is_closing=is_closing)
        outcome = self._drive(requests, 300)
        count = int(len(outcome.latencies_ms) / outcome.wall_s * seconds)
        with watched(self._server, HEALTH, _PROBE_EVERY_S):
            cpu_s, began = self._cpu_s(), time.perf_counter()
            outcome = self._drive(requests, count)
        self._peak_share = (self._cpu_s() - cpu_s) / (time.perf_counter() - began)
        self.peak, self._is_closing = len(outcome.latencies_ms) / outcome.wall_s, is_closing
        if not is_closing:
            self._open_peak = self.peak

    def overload(self, load: Overload, seconds: float) -> Row:
        """Offers `load.factor` times the peak, and measures the peak again."""
        if load.is_closing != self._is_closing:
            self.measure_peak(min(20.0, seconds), is_closing=load.is_closing)
        rate, peak_before, requests = load.factor * self.peak, self.peak, self._requests_for(is_closing=load.is_closing)
        with (
            watched(self._server, HEALTH, _PROBE_EVERY_S) as health,
            self._refused() as refused,
            self._large(_NUM_LARGE_CLIENTS if load.has_large else 0) as large,
        ):
            cpu_s, began = self._cpu_s(), time.perf_counter()
            outcome = self._drive(requests, int(rate * seconds), rate)
            ended = time.perf_counter()
            share = (self._cpu_s() - cpu_s) / (ended - began)
        self.measure_peak(min(20.0, seconds), is_closing=load.is_closing)
        peak = (peak_before + self.peak) / 2
        goodput = len(outcome.latencies_ms) / outcome.wall_s / peak + large.busy_s(began, ended) / (ended - began)
        p99_s, refused_ms = quantile_of(outcome.latencies_ms, 0.99) / 1e3, quantile_of(refused.delays_ms, 0.99)
        health_ms = health.delay_ms(0.99)
        lost = _lost(outcome) + large.counts.total() - large.counts[200] - large.counts[429]
        retry = f"{min(refused.retry_after_s)} to {max(refused.retry_after_s)} s" if refused.retry_after_s else "none"
        must_large, large_s = "", MAX_QUEUE_WAIT_S + 2 * _NUM_LARGE_CLIENTS * large.alone_s
        beside = f"; on connections that stay open the peak was {self._open_peak:.0f}/s" if load.is_closing else ""
        if load.has_large:
            must_large = "large requests within 2 s and the time that they take with half of the engine; "
            beside = (
                f"; large requests {large.counts[200]} x 200, slowest {large.slowest_s:.1f} s and alone "
                f"{large.alone_s:.1f} s, {large.counts[429]} x 429; {len(outcome.latencies_ms)} small x 200"
            )
        return Row(
            name=load.name,
            must=f"goodput >= {_MIN_GOODPUT:.0%} of the peak; p99 of 200s <= {MAX_QUEUE_WAIT_S:g} s; {must_large}"
            f"p99 of 429s <= {_REFUSED_MS:g} ms, with Retry-After; nothing reset; p99 of `/health` <= "
            f"{_MAX_HEALTH_MS:g} ms",
            measured=f"{goodput:.0%} of {peak:.0f}/s (before {peak_before:.0f}, after {self.peak:.0f}) for "
            f"{outcome.wall_s:.0f} s; p99 {p99_s:.2f} s; 429s p99 {refused_ms:.1f} ms, Retry-After {retry}; "
            f"{lost} reset; `/health` p99 {health_ms:.1f} ms; the server had "
            f"{share:.0%} of its processor (at the peak {self._peak_share:.0%}), the generator "
            f"{outcome.cpu_s / outcome.wall_s:.0%} of the other{beside}",
            holds=goodput >= _MIN_GOODPUT
            and p99_s <= MAX_QUEUE_WAIT_S
            and large.slowest_s <= large_s
            and refused_ms <= _REFUSED_MS
            and not lost
            and health_ms <= _MAX_HEALTH_MS,
            is_broken=bool(lost) or health.statuses != {200},
        )

    def deadlines(self, seconds: float) -> Row:
        """Offers 3 times the peak, each request with a deadline."""
        rate, requests = 3 * self.peak, _with_header(self._requests, b"request-timeout-ms: %d" % (1e3 * DEADLINE_S))
        outcome = self._drive(requests, int(rate * seconds), rate)
        batch_s = self._server.metrics()["te_request_inference_duration_sum"] / max(
            1.0, self._server.metrics()["te_request_inference_duration_count"]
        )
        slowest_s, late = max(outcome.latencies_ms) / 1e3, sum(ms > 1e3 * DEADLINE_S for ms in outcome.latencies_ms)
        lost, limit_s = _lost(outcome), DEADLINE_S + batch_s
        return Row(
            name=LATE,
            must="no 200 later than its deadline and one batch; others 504 or 429",
            measured=f"{len(outcome.latencies_ms)} x 200, {late} after the deadline, slowest {slowest_s:.3f} s with "
            f"batches of {batch_s:.3f} s on average; {outcome.errors.get('504', 0)} x 504, "
            f"{outcome.errors.get('429', 0)} x 429; goodput "
            f"{len(outcome.latencies_ms) / outcome.wall_s / self.peak:.0%}",
            holds=slowest_s <= limit_s and not lost,
            is_broken=bool(lost),
        )

    def _requests_for(self, *, is_closing: bool) -> list[bytes]:
        return _with_header(self._requests, b"connection: close") if is_closing else self._requests

    def _cpu_s(self) -> float:
        times = psutil.Process(self._server.pid).cpu_times()
        return float(times.user + times.system)

    def _drive(self, requests: Sequence[bytes], count: int, rate: float = 0.0) -> Outcome:
        chosen = [requests[number % len(requests)] for number in range(count)]
        connections = _CONNECTIONS if rate else _CLOSED_LOOP
        load = Load(
            host="127.0.0.1",
            port=self._server.port,
            requests=chosen,
            connections=connections,
            rate=rate,
            cpus=self._cpus,
        )
        return drive(load)

    @contextmanager
    def _refused(self) -> Iterator[Refusals]:
        """Sends requests one after the other inside the block, and keeps what their refusals were."""
        found = Refusals()

        def client(done: threading.Event) -> None:
            with self._server.connect() as connection:
                while not done.wait(0.05):
                    began = time.perf_counter()
                    reply = ask(connection, self._requests[0])
                    if reply.status_code == 429:
                        found.delays_ms.append(1e3 * (time.perf_counter() - began))
                        found.retry_after_s.append(int(reply.headers["retry-after"]))

        with running(client):
            yield found

    @contextmanager
    def _large(self, num_clients: int) -> Iterator[Larges]:
        """Sends large requests inside the block, one after the other for each client."""
        found = Larges()

        def send(connection: socket.socket) -> int:
            began = time.perf_counter()
            status = ask(connection, self._large_request).status_code
            if status == 200:
                found.spans.append((began, time.perf_counter()))
            return status

        def client(done: threading.Event) -> None:
            with self._server.connect() as connection:
                while not done.wait(0.2):
                    found.counts[send(connection)] += 1

        if num_clients:
            with self._server.connect() as connection:
                send(connection)
            (started, ended) = found.spans.pop()
            found.alone_s = ended - started
        with ExitStack() as stack:
            for _ in range(num_clients):
                stack.enter_context(running(client))
            yield found


def _with_header(requests: Sequence[bytes], line: bytes) -> list[bytes]:
    """The requests with one more header."""
    return [request.replace(b"content-type", line + b"\r\ncontent-type", 1) for request in requests]


def _lost(outcome: Outcome) -> int:
    """Requests that ended without a reply, or with one that overload does not explain."""
    return sum(count for error, count in outcome.errors.items() if error not in {"429", "504"})


ORDER = (*(load.name for load in OVERLOADS), LATE)
