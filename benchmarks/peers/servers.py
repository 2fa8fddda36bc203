"""A server: start, ask, measure, stop."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from bei_core.bench.client import Load, Outcome, drive
from bei_core.bench.measure import split
from bei_core.bench.observe import Server as Observer
from bei_core.bench.observe import Snapshot
from benchmarks.peers.agreement import Answers
from benchmarks.peers.catalogue import OURS, Peer, fill
from benchmarks.peers.machine import undisturbed, wait_for_quiet
from benchmarks.peers.results import Timing, latency_of
from benchmarks.peers.workloads import Workload, http_requests, questions, rerank_body

_START_S, _OUR_START_S = 300.0, 900.0  # the first start of ours builds an engine
_STOP_S = 4.0
_PROBE = ["a short query", "one document", "another document"]


class PeerError(Exception):
    """A peer does not start, or does not answer; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    peer: Peer
    url: str

    def ask(self, asked: Sequence[str], rerank: bool) -> Answers:
        """The vectors of these texts; for reranking the scores of the documents after the query, in one row.

        Raises PeerError if the server refuses.
        """
        try:
            return _ask(self.peer, self.url, asked, rerank)
        except urllib.error.HTTPError as error:
            raise PeerError(f"it answered {error.code}: {error.read(200)!r}") from None

    def measure(self, workload: Workload, count: int) -> Timing:
        """One timed run after a warm-up and a quiet second. Raises PeerError if a request fails."""
        warmup = workload.num_warmup(self.peer)
        self._drive(workload, 0, warmup)
        wait_for_quiet()  # ours compiles graphs for one client alone now
        (outcome, spent, rss), share = undisturbed(lambda: self._drive(workload, warmup, count))
        return Timing(
            texts_per_s=count * workload.batch / outcome.wall_s,
            latency_ms=latency_of(outcome.latencies_ms),
            cpu_ms=spent / (count * workload.batch) * 1e3,
            rss_mb=rss,
            others_share=share,
        )

    def _drive(self, workload: Workload, first: int, count: int) -> tuple[Outcome, float, float]:
        """(outcome of the requests, CPU seconds of the server, its resident memory in MB)."""
        parts = split(self.url)
        requests = http_requests(workload, self.peer, parts.netloc, questions(workload, first, count))
        load = Load(
            host=parts.hostname or "",
            port=parts.port or 0,
            requests=requests,
            connections=min(workload.clients, len(requests)),
            timeout_s=600.0,
        )
        server, before = Observer(parts), list[Snapshot]()
        outcome = drive(load, lambda: before.append(server.snapshot()))
        after = server.snapshot()
        if outcome.errors:
            raise PeerError(f"requests failed: {outcome.errors}")
        return outcome, (after.cpu_s or 0.0) - (before[0].cpu_s or 0.0), after.rss_mb or 0.0


@contextmanager
def running(peer: Peer, model: str, folder: Path, environments: Path, rerank: bool) -> Iterator[Server]:
    """The peer's server, which answers; it is stopped at the end. Raises PeerError if it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, command = f"http://127.0.0.1:{port}", fill(peer, model, folder, environments, port, rerank)
    with TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for_answer(peer, url, rerank, process, log)
            yield Server(peer, url)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for_answer(peer: Peer, url: str, rerank: bool, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + (_OUR_START_S if peer.name == OURS else _START_S)
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _ask(peer, url, _PROBE, rerank)
            return
        except urllib.error.HTTPError as error:
            if error.code != 503:  # 503: it still loads the model
                raise PeerError(f"it answered {error.code}: {error.read(200)!r}") from None
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
    raise PeerError(f"it did not start (exit status {process.poll()}): {''.join(last)[:200]}")


def _ask(peer: Peer, url: str, asked: Sequence[str], rerank: bool) -> Answers:
    if rerank:
        reply = _post(url + peer.rerank, rerank_body(peer, asked))
        results = reply["results"] if isinstance(reply, dict) else reply  # a list in the API of TEI
        ordered = sorted(results, key=lambda each: int(each["index"]))
        return [[each.get("relevance_score", each.get("score")) for each in ordered]]
    body = {"model": "bench", "input": list(asked), "encoding_format": "float"}
    return [each["embedding"] for each in _post(f"{url}/v1/embeddings", json.dumps(body).encode())["data"]]


def _post(url: str, body: bytes) -> Any:  # noqa: ANN401 - decoded JSON
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)
