"""The report of the GPU self-check: Markdown, a plot, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from scripts.gpu.checks import Check
from scripts.gpu.speed import Alone, Served

STAND_IN = (
    "**This run used a stand-in for TensorRT-LLM, in plain torch on a CPU. It shows that the script works and that our "
    "classes are right. No figure in it says anything about a GPU.**"
)


@dataclass
class Findings:
    """The results of a whole run."""

    is_stand_in: bool
    card: str
    versions: Mapping[str, str]
    model: str
    checks: list[Check] = field(default_factory=list)
    alone: dict[str, Alone] = field(default_factory=dict)  # by precision
    served: list[Served] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def lines(self) -> Iterator[str]:
        """Yields the lines of the report in Markdown."""
        yield f"# GPU self-check: {'stand-in, no GPU' if self.is_stand_in else self.card}\n"
        if self.is_stand_in:
            yield STAND_IN + "\n"
        yield "Made by `scripts/gpu_selfcheck.py`. " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + "\n"
        yield f"## Correctness: {len(self.checks) - len(self.failed)} of {len(self.checks)} checks passed\n"
        yield from table(
            ("check", "result", "", "s"),
            [(c.what, c.figure, "passed" if c.passed else "**failed**", f"{c.seconds:.1f}") for c in self.checks],
        )
        yield f"\n## Speed of {self.model}, the engine alone\n"
        yield from table(
            ("precision", "one query of 8 tokens, p50 / p99 ms", "tokens/s of full batches", "share of the GPU's peak"),
            [self._alone(precision, found) for precision, found in self.alone.items()],
        )
        yield "\n## Comparison over HTTP, 64 clients, one text per request\n"
        yield from table(
            ("server", "workload", "requests/s", "tokens/s", "p50 / p99 ms"), [_served(each) for each in self.served]
        )

    def _alone(self, precision: str, found: Alone) -> Sequence[str]:
        share = "peak unknown" if found.share is None else f"{found.share:.1%}"
        times = f"{found.query_p50_ms:.2f} / {found.query_p99_ms:.2f}"
        return (precision, times, f"{found.tokens_per_s:,.0f}", share)

    def write(self, folder: Path, name: str) -> None:
        """Writes `name.md` and `name.json` into the folder, and `name.png` if matplotlib is installed."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text("\n".join(self.lines()) + "\n", encoding="utf-8")
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        plot(self, folder / f"{name}.png")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def _served(each: Served) -> Sequence[str]:
    report = each.report
    if report is None or report.latency_ms is None:
        return (each.server, each.workload, each.note or "no request was answered", "", "")
    tokens = "" if report.tokens_per_s is None else f"{report.tokens_per_s:,.0f}"
    latency = report.latency_ms
    return (
        each.server,
        each.workload,
        f"{report.requests_per_s:,.0f}",
        tokens,
        f"{latency.p50:.1f} / {latency.p99:.1f}",
    )


def plot(findings: Findings, path: Path) -> None:
    """Plots requests per second of each server and workload; does nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot, because matplotlib is not installed: pip install matplotlib")
        return
    shown = [each for each in findings.served if each.report is not None]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    labels = [f"{each.server}, {each.workload}" for each in shown]
    bars = axis.barh(labels, [each.report.requests_per_s for each in shown if each.report is not None])
    axis.bar_label(bars, fmt="{:,.0f}")
    axis.invert_yaxis()
    axis.set_xlabel("requests per second, 64 clients")
    title = "STAND-IN ON A CPU: NOT A MEASUREMENT OF A GPU" if findings.is_stand_in else findings.card
    axis.set_title(f"{findings.model}: {title}")
    figure.savefig(path, dpi=120)
