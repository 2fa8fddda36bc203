"""The results of `peers.py` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

OURS = "BEI"
CLIENTS = (64, 1)  # concurrent clients; one table for each number


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One timed run."""

    name: str
    dtype: str
    clients: int
    turn: int  # the round
    workload: str
    texts_per_s: float
    latency_ms: tuple[float, float, float] | None  # p50, p95, p99
    cpu_ms: float  # user + system time of all its processes, per request
    rss_mb: float
    others_share: float  # share of the CPU time that other processes used meanwhile


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All measurements, with the machine and the versions."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    missing: dict[str, str]  # peer to the command that installs it
    samples: list[Sample]


def table(result: Result) -> str:
    """The results as Markdown."""
    lines = [
        f"Machine: {', '.join(f'{name} {value}' for name, value in result.machine.items())}; the client on it too.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in result.versions.items())}.",
        *(f"Not measured: {name}. Install it with `{command}`." for name, command in result.missing.items()),
    ]
    for clients in CLIENTS:
        lines += ["", *_section([sample for sample in result.samples if sample.clients == clients])]
    rounds = 1 + max(sample.turn for sample in result.samples)
    most = max(sample.others_share for sample in result.samples)
    return "\n".join([*lines, "", _NOTES.format(rounds=rounds, most=most)])


_NOTES = """\
Medians of {rounds} rounds; in brackets the lowest and the highest. Ratios are ours / the row's, each within a round:
of texts/s, and of CPU time per request. Other processes used at most {most:.1%} of the CPU time in a run that counts.

Infinity has its defaults (torch, batches of 32), but does not log each request (`--log-level warning`).
BetterTransformer is its default if the installed optimum still has it. sentence-transformers is not a server:
with 64 it gets all texts in one call with batches of 64, which sorts them by length; with 1, one text per call.
"""


def _section(samples: Sequence[Sample]) -> list[str]:
    kinds = list(dict.fromkeys((sample.name, sample.dtype) for sample in samples))
    groups = {kind: [sample for sample in samples if (sample.name, sample.dtype) == kind] for kind in kinds}
    return [
        f"`{samples[0].workload}`:",
        "",
        "| server | dtype | texts/s | p50 / p95 / p99 ms | CPU ms/request | RSS MB "
        "| ours f32 / it: texts/s; CPU | ours bf16 / it: texts/s; CPU |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        *(
            _row(group, [groups[OURS, dtype] for dtype in ("float32", "bfloat16")])
            for group in sorted(groups.values(), key=_speed, reverse=True)
        ),
    ]


def _speed(group: Sequence[Sample]) -> float:
    return statistics.median(sample.texts_per_s for sample in group)


def _row(group: Sequence[Sample], ours: Sequence[Sequence[Sample]]) -> str:
    speeds = [sample.texts_per_s for sample in group]
    waits = [sample.latency_ms for sample in group if sample.latency_ms is not None]
    cells = (
        group[0].name,
        group[0].dtype,
        f"{_speed(group):,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})",
        " / ".join(f"{statistics.median(column):.1f}" for column in zip(*waits, strict=True)),
        f"{statistics.median(sample.cpu_ms for sample in group):.2f}",
        f"{statistics.median(sample.rss_mb for sample in group):,.0f}",
        *(_ratios(mine, group) for mine in ours),
    )
    return f"| {' | '.join(cells)} |"


def _ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> str:
    pairs = list(zip(ours, theirs, strict=True))
    speeds = [mine.texts_per_s / other.texts_per_s for mine, other in pairs]
    cpu = statistics.median(mine.cpu_ms / other.cpu_ms for mine, other in pairs)
    return f"{statistics.median(speeds):.2f} ({min(speeds):.2f}-{max(speeds):.2f}); {cpu:.2f}"
