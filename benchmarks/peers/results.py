"""The samples of a comparison, and ratios of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from bei_core.bench.report import Latency
from benchmarks.peers.catalogue import OURS


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one timed run."""

    texts_per_s: float  # documents/s for reranking
    latency_ms: tuple[float, float, float] | None  # p50, p95, p99 of a request
    cpu_ms: float  # user + system time of all its processes, per text
    rss_mb: float
    others_share: float  # share of the CPU time that other processes used meanwhile


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One timed run of a peer. Samples are compared within a turn: one round of one sitting."""

    model: str
    workload: str
    peer: str
    precision: str
    turn: int
    agreement: float  # least cosine of vectors, or rank correlation of scores, to our f32
    timing: Timing

    @property
    def case(self) -> tuple[str, str]:
        """(model, workload)."""
        return self.model, self.workload

    @property
    def who(self) -> tuple[str, str]:
        """(peer, precision)."""
        return self.peer, self.precision


class Result(msgspec.Struct, kw_only=True):
    """All measurements, with the machine, its peaks and the versions."""

    machine: dict[str, str | int] = {}
    peaks: list[dict[str, float]] = []  # GFLOP/s of matmuls by precision, at the start of each sitting
    versions: dict[str, str] = {}  # of each environment
    missing: dict[str, str] = {}  # peer to what is missing
    refused: dict[str, str] = {}  # peer, model and workload to the reason
    samples: list[Sample] = []


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """The spread of at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))

    def show(self, form: str) -> str:
        """The median, and the range in brackets if there is one."""
        low, high = format(self.low, form), format(self.high, form)
        return format(self.median, form) + (f" ({low}-{high})" if low != high else "")


def latency_of(took_ms: Sequence[float]) -> tuple[float, float, float] | None:
    """(p50, p95, p99) of the times of requests; None if there are none."""
    found = Latency.of(took_ms)
    return (found.p50, found.p95, found.p99) if found else None


def our_precision(precision: str, available: Iterable[str]) -> str:
    """The precision of ours that a peer is compared with: f32 for 16 bits where ours has no bf16."""
    wanted = "bf16" if precision in ("bf16", "f16") else precision
    return wanted if wanted in available else "f32"


def ratios(samples: Sequence[Sample], peer: Sequence[Sample]) -> Spread | None:
    """Our texts/s divided by the peer's, each within a turn; None if no turn has both. `peer` is of one case."""
    ours = {(each.case, each.turn, each.precision): each for each in samples if each.peer == OURS}
    found = []
    for theirs in peer:
        available = [precision for case, turn, precision in ours if (case, turn) == (theirs.case, theirs.turn)]
        mine = ours.get((theirs.case, theirs.turn, our_precision(theirs.precision, available)))
        if mine:
            found.append(mine.timing.texts_per_s / theirs.timing.texts_per_s)
    return Spread.of(found) if found else None
