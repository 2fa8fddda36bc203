"""Latency by minute of a server that has just started: does a new shape of a batch surprise a caller?

Requests of one text arrive in an open loop, at half of the rate that a server of the same engine has just reached with
64 clients. Prints a table and writes results/first-minute.{md,json}. The bar: p99 of the first minute is at most 1.3
times that of the last one.

    first_minute.py [--model FOLDER] [--dtype int8] [--minutes 4] [--rate REQUESTS_PER_SECOND]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from bei_core.bench import Options, Report, run
from bei_core.bench.measure import machine
from benchmarks.reports import write_results
from benchmarks.serve import server

_ROOT = Path(__file__).parents[1]
_BAR = 1.3


def capacity(model: str, dtype: str) -> float:
    """Texts per second of a server with 64 clients. The engine is in the cache afterwards."""
    with server(model, dtype) as (url, _):
        return run(Options(url=url, num_requests=2000, clients=64)).texts_per_s


def minutes(model: str, dtype: str, rate: float, count: int) -> list[Report]:
    """A report for each minute of a server from its first request on. No two minutes have the same texts."""
    with server(model, dtype) as (url, _):
        options = Options(url=url, num_requests=round(60 * rate), rate=rate, warmup=0)
        return [run(msgspec.structs.replace(options, seed=minute)) for minute in range(count)]


def table(reports: Sequence[Report], about: str) -> str:
    """The latencies by minute as Markdown."""
    lines = ["| minute | p50 ms | p99 ms | max ms | p99 / that of the last minute |", "|--:|--:|--:|--:|--:|"]
    latencies = [report.latency_ms for report in reports if report.latency_ms is not None]
    lines += [
        f"| {minute} | {each.p50:.1f} | {each.p99:.1f} | {each.max:.1f} | {each.p99 / latencies[-1].p99:.2f} |"
        for minute, each in enumerate(latencies, 1)
    ]
    first = latencies[0].p99 / latencies[-1].p99
    verdict = f"The first minute's p99 is {first:.2f} of the last one's; the bar is {_BAR}."
    return "\n".join([about, "", *lines, "", verdict, ""])


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(_ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--minutes", type=int, default=4)
    parser.add_argument("--rate", type=float, help="requests per second; half of the measured capacity if not given")
    options = parser.parse_args()
    rate = options.rate or capacity(options.model, options.dtype) / 2
    reports = minutes(options.model, options.dtype, rate, options.minutes)
    about = (
        f"`mixed`, one text a request, {rate:.0f} requests/s (open loop), {Path(options.model).name}, {options.dtype}."
    )
    text = table(reports, about)
    write_results("first-minute", text, {"machine": machine(), "about": about, "reports": reports})


if __name__ == "__main__":
    main()
