"""The report of a benchmark: as text together with its workload, as JSON, as a plot."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bei_core.bench.saved import Saved
from bei_core.errors import ConfigError


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of times, in ms."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Latency | None:
        """Returns the distribution of samples, with linearly interpolated percentiles; None if there are none."""
        if not samples_ms:
            return None
        p50, p95, p99 = (float(value) for value in np.percentile(samples_ms, [50, 95, 99]))
        return cls(mean=float(np.mean(samples_ms)), p50=p50, p95=p95, p99=p99, max=max(samples_ms))

    def __str__(self) -> str:
        return f"p50 {self.p50:.2f}  p95 {self.p95:.2f}  p99 {self.p99:.2f}  max {self.max:.2f}"


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent, in enough detail to repeat it."""

    name: str
    loop: str
    route: str
    encoding_format: str
    num_requests: int
    batch: int
    seed: int
    mean_words: float
    mean_tokens: float | None = None  # None: the server does not report tokens

    def __str__(self) -> str:
        tokens = f", {self.mean_tokens:.1f} tokens" if self.mean_tokens is not None else ""
        size = f"{self.batch} text{'s' if self.batch > 1 else ''} (mean {self.mean_words:.1f} words{tokens})"
        sent = f"{self.name}: {self.num_requests:,} requests of {size}, seed {self.seed}"
        return f"{sent}; {self.loop}; {self.route}, {self.encoding_format}"


class Report(Saved, frozen=True, kw_only=True):
    """The numbers of one benchmark; None where a number is not available."""

    called = "a report of bei bench"

    label: str
    workload: Workload
    num_ok: int
    errors: dict[str, int]  # by status, or `timeout`, `disconnected`, `connect`, `protocol`
    wall_s: float
    requests_per_s: float  # answered with 200
    texts_per_s: float
    tokens_per_s: float | None
    latency_ms: Latency | None  # open loop: from the scheduled arrival
    lag_ms: Latency | None  # open loop: the part of the latency that a request waited in the client
    server_cpu_ms: float | None  # user + system time of all its processes, per request
    server_rss_mb: float | None
    client_cpu_us: float  # CPU time of the load generator per request
    gemm_peak_gflops: float | None
    gemm_share: float | None
    padding_share: float | None
    engine_busy_share: float | None
    counters: dict[str, float]  # increase of each during the measurement
    machine: dict[str, str | int]
    server: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join([str(self.workload), *(f"  {name:<10} {value}" for name, value in self._rows())])

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            ("throughput", self._throughput()),
            ("latency ms", str(self.latency_ms or "no request was answered")),
            ("lag ms", str(self.lag_ms or "")),
            ("errors", "  ".join(f"{name} {count:,}" for name, count in sorted(self.errors.items())) or "none"),
            (
                "server",
                _join(_show("{:.3f} CPU ms/request", self.server_cpu_ms), _show("RSS {:,.0f} MB", self.server_rss_mb)),
            ),
            ("client", f"{self.client_cpu_us:.0f} CPU us/request"),
            ("engine", self._engine()),
        ]
        return [row for row in rows if row[1]]

    def _throughput(self) -> str:
        return _join(
            f"{self.texts_per_s:,.1f} texts/s",
            f"{self.requests_per_s:,.1f} requests/s",
            _show("{:,.0f} tokens/s", self.tokens_per_s),
        )

    def _engine(self) -> str:
        return _join(
            _show("{:.1%} of the GEMM peak", self.gemm_share),
            _show("{:.1%} padding", self.padding_share),
            _show("{:.1%} busy", self.engine_busy_share),
        )


def _show(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def _join(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def plot(paths: Sequence[Path], target: Path) -> Path:
    """Plots the reports in `paths`: throughput, latency and CPU time. Writes and returns `target`. Needs matplotlib."""
    reports = [Report.read(path) for path in paths]
    figure = empty_figure(len(reports))
    axes = figure.subplots(1, 3, sharey=True)
    _bars(axes[0], "texts/s", "{:,.0f}", [report.texts_per_s for report in reports])
    _percentiles(axes[1], reports)
    _bars(axes[2], "server CPU ms/request", "{:.3g}", [report.server_cpu_ms or 0.0 for report in reports])
    axes[0].set_yticks(range(len(reports)), [report.label for report in reports])
    axes[0].invert_yaxis()
    figure.savefig(target)
    return target


def empty_figure(num_rows: int) -> Any:  # noqa: ANN401, matplotlib is optional and so are its types
    """An empty figure. Raises ConfigError if matplotlib is not installed."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ConfigError("a plot needs matplotlib: pip install 'bei-core[bench]'") from None
    return figures.Figure(figsize=(12, 1.8 + 0.4 * num_rows), dpi=120, layout="constrained")


def _bars(axis: Any, title: str, form: str, values: Sequence[float]) -> None:  # noqa: ANN401
    axis.bar_label(axis.barh(range(len(values)), values, height=0.6), fmt=form, padding=3)
    axis.margins(x=0.25)
    axis.set_title(title)


def _percentiles(axis: Any, reports: Sequence[Report]) -> None:  # noqa: ANN401
    for name, marker in (("p50", "o"), ("p95", "s"), ("p99", "D"), ("max", "x")):
        answered = [(at, report.latency_ms) for at, report in enumerate(reports) if report.latency_ms]
        axis.plot([getattr(latency, name) for _, latency in answered], [at for at, _ in answered], marker, label=name)
    axis.set_xscale("log")
    axis.set_title("latency, ms")
    axis.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axis.grid(axis="x", which="both", alpha=0.3)
