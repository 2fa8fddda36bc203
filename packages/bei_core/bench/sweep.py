"""Measures a workload under several loads, and plots how latency, throughput and stages depend on the load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bei_core.bench.measure import Options, run
from bei_core.bench.report import Report, empty_figure

# Stages of a request: name in the plot -> metric, which both our server and text-embeddings-inference have.
STAGES = {name: f"te_request_{name}_duration" for name in ("tokenization", "queue", "inference")}

_SHARES = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 1)  # of the load that is asked for


def loads_up_to(options: Options) -> list[float]:
    """Returns the loads to measure: numbers of clients (closed loop), or requests per second (open loop)."""
    if options.rate:
        return [options.rate * share for share in _SHARES]
    return [float(count) for count in sorted({max(1, round(options.clients * share)) for share in _SHARES})]


def sweep(options: Options, measure: Callable[[Options], Report] = run) -> list[Report]:
    """Returns a report for each load, the smallest load first. Raises the errors of `run`."""
    name = "rate" if options.rate else "clients"
    return [measure(msgspec.structs.replace(options, **{name: _exact(load)})) for load in loads_up_to(options)]


def _exact(load: float) -> float:
    """Returns the load as an int if it is a whole number, because a number of clients must be an int."""
    return int(load) if load.is_integer() else load


def plot_sweep(options: Options, reports: Sequence[Report], target: Path) -> Path:
    """Draw the reports of `sweep(options)`. Writes and returns `target`. Raises ConfigError without matplotlib."""
    loads, figure = loads_up_to(options), empty_figure(6)
    figure.suptitle(f"{reports[0].workload.name}, {reports[0].workload.route}", fontsize="medium")
    latency, throughput, stages = figure.subplots(1, 3)
    for name in ("p50", "p95", "p99"):
        values = [getattr(report.latency_ms, name, None) for report in reports]
        _line(latency, "latency, ms", loads, values, name)
    _line(throughput, "texts/s", loads, [report.texts_per_s for report in reports])
    for name, metric in STAGES.items():
        _line(stages, "mean time of a stage, ms", loads, [_mean_ms(report, metric) for report in reports], name)
    for axis in (latency, throughput, stages):
        axis.set_xlabel("requests/s" if options.rate else "clients")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    latency.legend()
    stages.legend()
    figure.savefig(target)
    return target


def _line(axis: Any, title: str, loads: Sequence[float], values: Sequence[float | None], label: str = "") -> None:  # noqa: ANN401
    """Draws a line through the loads that have a value."""
    points = [(load, value) for load, value in zip(loads, values, strict=True) if value is not None]
    axis.plot([load for load, _ in points], [value for _, value in points], "o-", label=label)
    axis.set_title(title, fontsize="medium")


def _mean_ms(report: Report, metric: str) -> float | None:
    """Returns the mean of a histogram during the measurement, in ms; None if the server does not have it."""
    count = report.counters.get(f"{metric}_count")
    return report.counters.get(f"{metric}_sum", 0.0) / count * 1e3 if count else None
