"""The results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

from benchmarks.peers.catalogue import OURS
from benchmarks.peers.results import Result, Sample, Spread, ratios
from benchmarks.peers.workloads import WORKLOADS

T = TypeVar("T")

_NOTES = """\
Figures are medians over rounds, in brackets the lowest and the highest. A ratio is ours divided by the peer's, of
texts/s (for reranking documents/s) and within a round; above 1 ours is faster. A peer of f32 is compared with our f32
and one of int8 with our int8. A peer of 16 bits (bf16, f16) is compared with our bf16 if the
processor has it, else with our f32.
"Agreement" is the least cosine of 16 vectors to those of our f32, for reranking the rank correlation of 15 scores.

A library "in process" is called in a loop, without a server, HTTP or single requests: for 64 clients it gets all texts
in one call, and computes 64 together.
"""


def table(result: Result) -> str:
    """All results: the machine, one table of ratios, and one table of figures for each model and workload."""
    return "\n".join(
        [*_head(result), "", "## Ratios", "", *_ratios(result.samples), "", _NOTES, *_figures(result.samples)]
    )


def _head(result: Result) -> list[str]:
    most = max((each.timing.others_share for each in result.samples), default=0.0)
    middle = statistics.median([each.timing.others_share for each in result.samples] or [0.0])
    peaks = ", ".join(f"{name} {spread.show(',.0f')}" for name, spread in _peaks(result.peaks).items())
    lines = [
        f"Machine: {', '.join(f'{name} {value}' for name, value in result.machine.items())}; the client on it too.",
        f"Peaks of matrix multiplication in the same sittings, in GFLOP/s (int8: GOP/s): {peaks}.",
        f"Other processes used {middle:.1%} of the CPU time in the median run, and at most {most:.1%}.",
        f"Versions: {'; '.join(f'{name}: {value}' for name, value in result.versions.items())}.",
        *(f"Not measured: {name}: {why}." for name, why in result.missing.items()),
        *(f"Not compared: {name}: {why}." for name, why in result.refused.items()),
    ]
    return [line for each in lines for line in (each, "")][:-1]


def _peaks(peaks: Sequence[dict[str, float]]) -> dict[str, Spread]:
    names = _unique(name for each in peaks for name in each)
    return {name: Spread.of([each[name] for each in peaks if name in each]) for name in names}


def _ratios(samples: Sequence[Sample]) -> list[str]:
    """One row for each model and peer, one column for each workload."""
    measured = {each.workload for each in samples}
    columns = [name for name in WORKLOADS if name in measured]
    lines = [f"| model | peer | precision | {' | '.join(columns)} |", f"|---|---|---|{'--:|' * len(columns)}"]
    for model, who in _unique((each.model, each.who) for each in samples if each.peer != OURS):
        mine = [each for each in samples if (each.model, each.who) == (model, who)]
        found = [ratios(samples, [each for each in mine if each.workload == column]) for column in columns]
        cells = [each.show(".2f") if each else "" for each in found]
        lines.append(f"| {' | '.join([model, *who, *cells])} |")
    return lines


def _figures(samples: Sequence[Sample]) -> list[str]:
    lines: list[str] = []
    for model, workload in _unique(each.case for each in samples):
        of_case = [each for each in samples if each.case == (model, workload)]
        groups = [[each for each in of_case if each.who == who] for who in _unique(each.who for each in of_case)]
        lines += [
            f"## {model}, {workload}: {WORKLOADS[workload].describe()}",
            "",
            "| peer | precision | texts/s | p50 / p95 / p99 ms | CPU ms/text | RSS MB | ours / it | agreement |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
            *(_row(samples, group) for group in sorted(groups, key=_speed, reverse=True)),
            "",
        ]
    return lines


def _row(samples: Sequence[Sample], group: Sequence[Sample]) -> str:
    timings = [each.timing for each in group]
    waits = [each.latency_ms for each in timings if each.latency_ms is not None]
    ratio = ratios(samples, group)
    cells = (
        *group[0].who,
        Spread.of([each.texts_per_s for each in timings]).show(",.1f"),
        " / ".join(f"{statistics.median(column):.1f}" for column in zip(*waits, strict=True)),
        f"{statistics.median(each.cpu_ms for each in timings):.2f}",
        f"{statistics.median(each.rss_mb for each in timings):,.0f}",
        ratio.show(".2f") if ratio else "",
        f"{min(each.agreement for each in group):.4f}",
    )
    return f"| {' | '.join(cells)} |"


def _speed(group: Sequence[Sample]) -> float:
    return statistics.median(each.timing.texts_per_s for each in group)


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
