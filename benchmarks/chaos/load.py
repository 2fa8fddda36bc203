"""More load than the server can compute: open loop, so that clients do not slow down with the server.

The server has one processor and all clients have another, so that these take nothing from the server. Goodput is
compared with the mean of two peaks, just before and just after, because the speed of a virtual machine changes by 10%
within minutes. A peak is measured with the same generator, as 48 clients in a closed loop, and the same health probe.
"""

from __future__ import annotations

import os
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
from tests.e2e.server import LONG, Server, ask, openai_request

MAX_QUEUE_WAIT_S = 2.0
DEADLINE_S = 0.5
_MAX_HEALTH_MS = 100.0
_MIN_GOODPUT = 0.95
_REFUSED_MS = 100.0  # "at once": the p99 of a 429
_CLOSED_LOOP = 48  # clients: full batches, and none of them is refused
_CONNECTIONS = 2000
_PROBE_EVERY_S = 0.05

LATE = "deadlines of 500 ms at 3 times the capacity"
_LARGE = 64  # texts of a large request, each as long as the model takes
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


class Loaded:
    """A server on the first processor; the generator uses the last one."""

    def __init__(self, folder: Path, seed: int) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        self._all_cpus, self._cpus = cpus, cpus[-1:]
        prefix = ("taskset", "-c", str(cpus[0]))
        self._server = Server(folder / "loaded", folder / "cache", prefix, max_queue_wait_s=MAX_QUEUE_WAIT_S)
        self._requests = Wire(host="a").requests(texts("mixed", 5000, seed))
        self.peak = 0.0  # requests a second
        self._peak_share = 0.0  # of its processor that the server used then

    def __enter__(self) -> Loaded:
        self._server.__enter__()
        os.sched_setaffinity(0, self._cpus)  # the probes run in this process
        self._drive(self._requests, 300)
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._all_cpus)
        self._server.__exit__(None, None, None)

    def measure_peak(self, seconds: float) -> None:
        """Measures the requests a second of a closed loop for about so many seconds."""
        outcome = self._drive(self._requests, 300)
        count = int(len(outcome.latencies_ms) / outcome.wall_s * seconds)
        with watched(self._server, HEALTH, _PROBE_EVERY_S):
            cpu_s, began = self._cpu_s(), time.perf_counter()
            outcome = self._drive(self._requests, count)
        self._peak_share = (self._cpu_s() - cpu_s) / (time.perf_counter() - began)
        self.peak = len(outcome.latencies_ms) / outcome.wall_s

    def overload(self, load: Overload, seconds: float) -> Row:
        """Offers `load.factor` times the peak, and measures the peak again."""
        rate, peak_before = load.factor * self.peak, self.peak
        requests = _with_header(self._requests, b"connection: close") if load.is_closing else self._requests
        with (
            watched(self._server, HEALTH, _PROBE_EVERY_S) as health,
            self._refused() as refused,
            self._large(_NUM_LARGE_CLIENTS if load.has_large else 0) as large,
        ):
            cpu_s, began = self._cpu_s(), time.perf_counter()
            outcome = self._drive(requests, int(rate * seconds), rate)
            share = (self._cpu_s() - cpu_s) / (time.perf_counter() - began)
        self.measure_peak(min(20.0, seconds))
        peak = (peak_before + self.peak) / 2
        goodput = len(outcome.latencies_ms) / outcome.wall_s / peak
        p99_s, refused_ms = quantile_of(outcome.latencies_ms, 0.99) / 1e3, quantile_of(refused.delays_ms, 0.99)
        health_ms, lost = health.delay_ms(0.99), _lost(outcome) + large.total() - large[200] - large[429]
        retry = f"{min(refused.retry_after_s)} to {max(refused.retry_after_s)} s" if refused.retry_after_s else "none"
        beside = f"; large requests {large[200]} x 200, {large[429]} x 429" if load.has_large else ""
        # Large requests take a part of the engine, so that the goodput of the others has no bound.
        must_goodput = "" if load.has_large else f"goodput >= {_MIN_GOODPUT:.0%} of the peak; "
        return Row(
            name=load.name,
            must=f"{must_goodput}p99 of 200s <= {MAX_QUEUE_WAIT_S:g} s; p99 of 429s <= "
            f"{_REFUSED_MS:g} ms, with Retry-After; nothing reset; p99 of `/health` <= {_MAX_HEALTH_MS:g} ms",
            measured=f"{goodput:.0%} of {peak:.0f}/s (before {peak_before:.0f}, after {self.peak:.0f}) for "
            f"{outcome.wall_s:.0f} s; p99 {p99_s:.2f} s; 429s p99 {refused_ms:.1f} ms, Retry-After {retry}; "
            f"{lost} reset; `/health` p99 {health_ms:.1f} ms; the server had "
            f"{share:.0%} of its processor (at the peak {self._peak_share:.0%}), the generator "
            f"{outcome.cpu_s / outcome.wall_s:.0%} of the other{beside}",
            holds=(load.has_large or goodput >= _MIN_GOODPUT)
            and p99_s <= MAX_QUEUE_WAIT_S
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
    def _large(self, num_clients: int) -> Iterator[Counter[int]]:
        """Sends large requests inside the block, one after the other for each client; counts replies by status."""
        found, request = Counter[int](), openai_request([LONG] * _LARGE)

        def client(done: threading.Event) -> None:
            with self._server.connect() as connection:
                while not done.wait(0.2):
                    found[ask(connection, request).status_code] += 1

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
