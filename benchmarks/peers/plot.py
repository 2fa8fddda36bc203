"""The ratios as a picture: one row of bars for each model and workload."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.catalogue import OURS
from benchmarks.peers.results import Sample, Spread, ratios


def plot(samples: Sequence[Sample], file: Path) -> None:
    """Write a PNG with a panel for each model and workload, and a bar for each peer in it."""
    cases = list(dict.fromkeys(each.case for each in samples if each.peer != OURS))
    figure, axes = _pyplot().subplots(
        len(cases),
        1,
        figsize=(9, sum(0.7 + 0.28 * len(_bars(samples, case)) for case in cases)),
        squeeze=False,
        height_ratios=[1 + len(_bars(samples, case)) for case in cases],
    )
    for case, axis in zip(cases, axes[:, 0], strict=True):
        _draw(axis, case, _bars(samples, case))
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _pyplot() -> Any:  # noqa: ANN401 - matplotlib has no types
    importlib.import_module("matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _bars(samples: Sequence[Sample], case: tuple[str, str]) -> dict[str, Spread]:
    """The ratio of each peer of a case, the smallest first."""
    found: dict[str, Spread] = {}
    for who in dict.fromkeys(each.who for each in samples if each.case == case and each.peer != OURS):
        ratio = ratios(samples, [each for each in samples if (each.case, each.who) == (case, who)])
        if ratio:
            found[" ".join(who)] = ratio
    return dict(sorted(found.items(), key=lambda item: item[1].median))


def _draw(axis: Any, case: tuple[str, str], bars: dict[str, Spread]) -> None:  # noqa: ANN401 - matplotlib has no types
    spreads = list(bars.values())
    errors = [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]
    drawn = axis.barh(list(bars), [each.median for each in spreads], xerr=errors, color="#4878a8", capsize=3)
    axis.bar_label(drawn, fmt="%.2f", padding=6)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.margins(x=0.12)
    axis.set_title(f"{', '.join(case)}: our texts/s divided by the peer's", fontsize=10, loc="left")
