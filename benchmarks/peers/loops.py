"""A library that is called in a loop, in a process of its own environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.peers.agreement import Answers
from benchmarks.peers.catalogue import Peer, fill
from benchmarks.peers.machine import undisturbed
from benchmarks.peers.results import Timing, latency_of
from benchmarks.peers.servers import PeerError
from benchmarks.peers.workloads import Workload, calls, questions


class _Run(msgspec.Struct):
    wall_s: float
    cpu_s: float
    rss_mb: float
    took_ms: list[float]


@dataclass(frozen=True, slots=True)
class Loop:
    """A running loop."""

    peer: Peer
    process: subprocess.Popen[str]

    def ask(self, asked: Sequence[str], rerank: bool) -> Answers:
        """The vectors of these texts; for reranking the scores of the documents after the query, in one row."""
        reply = self._send([list(asked)], rerank, answers=True)
        found: Answers = json.loads(reply)["answers"]
        return found

    def measure(self, workload: Workload, count: int) -> Timing:
        """One timed run after a warm-up and a quiet second."""
        warmup = workload.num_warmup(self.peer)
        self._send(calls(workload, questions(workload, 0, warmup)), workload.rerank)
        asked = calls(workload, questions(workload, warmup, count))
        reply, share = undisturbed(lambda: self._send(asked, workload.rerank))
        found = msgspec.json.decode(reply, type=_Run)
        num_texts = count * workload.batch
        return Timing(
            texts_per_s=num_texts / found.wall_s,
            latency_ms=latency_of(found.took_ms) if workload.clients == 1 else None,
            cpu_ms=found.cpu_s / num_texts * 1e3,
            rss_mb=found.rss_mb,
            others_share=share,
        )

    def _send(self, called: list[list[str]], rerank: bool, answers: bool = False) -> str:
        if self.process.stdin is None or self.process.stdout is None:
            raise PeerError("there is no pipe to the loop")
        job = {"calls": called, "rerank": rerank, "answers": answers}
        with suppress(BrokenPipeError):  # it has ended, as the empty line says
            print(json.dumps(job), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"the loop ended with {self.process.wait()}")
        return line


@contextmanager
def looping(peer: Peer, model: str, folder: Path, environments: Path, rerank: bool) -> Iterator[Loop]:
    """The peer's loop, which ends with the block."""
    command, pipe = fill(peer, model, folder, environments, 0, rerank), subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    try:
        yield Loop(peer, process)
    finally:
        process.kill()
        process.communicate()
