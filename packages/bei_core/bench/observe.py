"""Observes a server from outside: its counters over HTTP, and its CPU time and memory if it runs on this machine."""

from __future__ import annotations

import importlib
import json
import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult

import msgspec

BUSY_S = "bei_engine_busy_seconds_total"
NUM_BATCHES, NUM_TOKENS = "te_batch_next_tokens_count", "te_batch_next_tokens_sum"

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)", re.MULTILINE)
_LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0")  # noqa: S104, compared with and never bound


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the server at one moment."""

    counters: dict[str, float] = field(default_factory=dict)
    cpu_s: float | None = None  # None: not on this machine, or psutil is missing
    rss_mb: float | None = None


class Moment(msgspec.Struct, frozen=True):
    """The server's counters of batches at a moment."""

    at: float  # seconds, as `time.perf_counter`
    busy_s: float  # of the engine
    num_batches: float
    num_tokens: float


class Server:
    """A running server, found by its process id or by its URL."""

    def __init__(self, url: SplitResult, pid: int | None = None) -> None:
        self._url = url
        self._psutil = _psutil()
        self._pids = self._find(pid)

    def snapshot(self) -> Snapshot:
        """Returns the server's counters, CPU time and memory at this moment."""
        processes = self._processes()
        if not processes:
            return Snapshot(self._counters())
        times = [process.cpu_times() for process in processes]
        rss = sum(process.memory_info().rss for process in processes)
        return Snapshot(self._counters(), sum(t.user + t.system for t in times), rss / 1e6)

    def info(self) -> dict[str, Any]:
        """The JSON object at the server's `/info`; empty if it has none."""
        with suppress(ValueError):
            found = json.loads(self._get("/info") or "{}")
            return found if isinstance(found, dict) else {}
        return {}

    def _counters(self) -> dict[str, float]:
        return parse_counters(self._get("/metrics"))

    def _get(self, path: str) -> str:
        """The body of a reply with status 200; "" for any other status, because a server may lack the route."""
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=10)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.read().decode(errors="replace") if reply.status == 200 else ""
        except (OSError, HTTPException):
            return ""
        finally:
            connection.close()

    def _find(self, pid: int | None) -> list[int]:
        """The given process id, or those of the processes on this machine that listen on the URL's port."""
        if pid is not None:
            return [pid]
        if self._psutil is None or self._url.hostname not in _LOCAL:
            return []
        with suppress(self._psutil.Error):  # on some systems only root may list connections
            return sorted({c.pid for c in self._psutil.net_connections("tcp") if self._listens(c)})
        return []

    def _listens(self, connection: Any) -> bool:  # noqa: ANN401, psutil has no types
        return bool(connection.pid and connection.status == "LISTEN" and connection.laddr.port == self._url.port)

    def _processes(self) -> list[Any]:
        """The server's processes and their descendants, each once."""
        if self._psutil is None:
            return []
        found: dict[int, Any] = {}
        for pid in self._pids:
            with suppress(self._psutil.Error):
                parent = self._psutil.Process(pid)
                found |= {process.pid: process for process in [parent, *parent.children(recursive=True)]}
        return list(found.values())


@contextmanager
def watch(url: SplitResult, every_s: float) -> Iterator[list[Moment]]:
    """Reads the counters of a server every `every_s` seconds until the block ends; yields the growing list."""
    moments, ended = list[Moment](), threading.Event()

    def read() -> None:
        server = Server(url)
        while not ended.wait(every_s):
            counters = server.snapshot().counters
            values = (counters.get(name, 0.0) for name in (BUSY_S, NUM_BATCHES, NUM_TOKENS))
            moments.append(Moment(time.perf_counter(), *values))

    thread = threading.Thread(target=read, name="bei-bench-watch")
    thread.start()
    try:
        yield moments
    finally:
        ended.set()
        thread.join()


def parse_counters(text: str) -> dict[str, float]:
    """Returns values by metric name, summed over labels, from Prometheus' text format."""
    found: dict[str, float] = defaultdict(float)
    for name, text_value in _SAMPLE.findall(text):
        with suppress(ValueError):
            value = float(text_value)
            found[name] += value if math.isfinite(value) else 0.0
    return dict(found)


def _psutil() -> ModuleType | None:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        return None
