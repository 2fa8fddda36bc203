"""What share of the processor's own matmul peak `bei serve` reaches in each precision, beside each other.

A server for each precision that the processor has, all of one model, `mixed` texts, one text a request, 64 clients.
They are measured in turns; the peak of a precision is measured directly before its server, so both have the same clock
rate. Prints a table and writes results/precisions.{md,json}.

    precisions.py [--model FOLDER] [--rounds 3] [--requests 3000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from bei_core.bench import Options, Report, run
from bei_core.bench.measure import machine
from benchmarks.peers.machine import has_bf16
from benchmarks.reports import write_results
from benchmarks.serve import flops_per_token, server

_ROOT = Path(__file__).parents[1]
_DTYPES = {"int8": "int8", "bf16": "bfloat16", "f32": "float32"}
_BARS = {"int8": 0.65, "bf16": 0.80, "f32": 0.85}


class Measured(TypedDict):
    """One server in one round."""

    precision: str
    round: int
    report: Report


def peak_of(precision: str) -> float:
    """`gemm_peak` in a process of its own, which keeps no memory afterwards."""
    code = "import sys; from benchmarks.inprocess import gemm_peak; print(gemm_peak(sys.argv[1]))"
    return float(
        subprocess.run([sys.executable, "-c", code, precision], cwd=_ROOT, check=True, capture_output=True).stdout
    )


def measure(model: str, rounds: int, requests: int) -> list[Measured]:
    """The servers of all precisions, in turns; the first round begins with another one than the second."""
    names = [name for name in _DTYPES if name != "bf16" or has_bf16()]
    found: list[Measured] = []
    with ExitStack() as stack:
        urls = {name: stack.enter_context(server(model, _DTYPES[name]))[0] for name in names}
        for url in urls.values():
            run(Options(url=url, num_requests=500, clients=64, seed=rounds))
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                options = Options(
                    url=urls[name],
                    num_requests=requests,
                    clients=64,
                    seed=number,
                    gemm_peak_gflops=peak_of(name),
                    flops_per_token=flops_per_token(model),
                )
                found.append({"precision": name, "round": number, "report": run(options)})
                print(
                    json.dumps({"precision": name, "round": number, "texts/s": found[-1]["report"].texts_per_s}),
                    flush=True,
                )
    return found


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(found: Sequence[Measured], about: str) -> str:
    """The shares as Markdown, and the texts/s of each precision relative to bf16 in the same round."""
    lines = [
        "| precision | texts/s | p50 / p99 ms | peak, GFLOP/s (int8: GOP/s) | share of it | bar | texts/s / bf16's |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    rates = {(each["precision"], each["round"]): each["report"].texts_per_s for each in found}
    for name, bar in _BARS.items():
        reports = [each["report"] for each in found if each["precision"] == name]
        if not reports:
            continue
        latency = [(each.latency_ms.p50, each.latency_ms.p99) for each in reports if each.latency_ms is not None]
        p50, p99 = (statistics.median(column) for column in zip(*latency, strict=True))
        ratios = [
            rate / rates["bf16", number]
            for (precision, number), rate in rates.items()
            if precision == name and ("bf16", number) in rates
        ]
        lines.append(
            f"| {name} | {_spread([each.texts_per_s for each in reports], ',.0f')} | {p50:.0f} / {p99:.0f} "
            f"| {_spread([each.gemm_peak_gflops or 0 for each in reports], ',.0f')} "
            f"| {_spread([each.gemm_share or 0 for each in reports], '.2f')} | {bar:.2f} "
            f"| {_spread(ratios, '.2f') if ratios else ''} |"
        )
    return "\n".join([about, "", *lines, ""])


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(_ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3000)
    options = parser.parse_args()
    found = measure(options.model, options.rounds, options.requests)
    facts = machine()
    about = (
        f"Machine: {', '.join(f'{name} {value}' for name, value in facts.items())}; the clients on it too.\n\n"
        f"`mixed`, one text a request, 64 clients, {options.requests} requests, {Path(options.model).name}, "
        f"{flops_per_token(options.model) / 1e6:.1f} MFLOP a token in linear layers; median of {options.rounds} rounds "
        "(least to most)."
    )
    write_results("precisions", table(found, about), {"machine": facts, "about": about, "measured": found})


if __name__ == "__main__":
    main()
