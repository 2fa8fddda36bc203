"""A client that asks for health all the time, and what it saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from tests.e2e.server import Server, ask

LIVE = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"


@dataclass
class Seen:
    """What a probe saw while it ran."""

    delays_ms: list[float] = field(default_factory=list)  # of the replies
    statuses: set[int] = field(default_factory=set)
    peak: int = 0  # bytes of memory of the server

    def delay_ms(self, quantile: float) -> float:
        """A quantile of the delays; 1.0 is the slowest."""
        return quantile_of(self.delays_ms, quantile)


def quantile_of(values: Sequence[float], quantile: float) -> float:
    """A quantile of values, 0 to 1; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else float("nan")


@contextmanager
def watched(server: Server, request: bytes = LIVE, every_s: float = 0.005) -> Iterator[Seen]:
    """Sends a probe again and again inside the block, on one connection.

    `/health/live` is answered by the event loop alone: the slowest reply bounds how long the loop stood still.
    """
    seen, process = Seen(), psutil.Process(server.pid)

    def probe(done: threading.Event) -> None:
        with server.connect() as connection:
            while not done.wait(every_s):
                began = time.perf_counter()
                seen.statuses.add(ask(connection, request).status_code)
                seen.delays_ms.append(1e3 * (time.perf_counter() - began))
                seen.peak = max(seen.peak, process.memory_info().rss)

    with running(probe):
        yield seen


@contextmanager
def running(client: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs `client` on a thread during the block; it has to return when its event is set.

    Raises what `client` raised: what it saw until then says nothing about the rest of the block.
    """
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(client, done)
        try:
            yield
        finally:
            done.set()
        ended.result()
