"""Holds the capacity model against a measured server, which has one processor; the load generator has the others.

A shared machine changes its speed. So the server is calibrated before and after the runs, its counters are read five
times a second, and each run is also simulated with the speed that the machine had at each moment of it.

python benchmarks/capacity.py measure --output measured.json     # starts a server; about four minutes
python benchmarks/capacity.py compare measured.json              # prints the table of docs/capacity.md
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import msgspec
import numpy as np

from bei_core.bench import Options, Report, run
from bei_core.bench.calibrate import SLOWDOWN_S, WATCH_S, Calibration, calibrate, speeds
from bei_core.bench.measure import split
from bei_core.bench.observe import Moment, watch
from bei_core.bench.pace import arrivals
from bei_core.bench.workload import texts
from bei_core.capacity.autoscaler import Scaling
from bei_core.capacity.simulation import Result, simulate
from bei_core.capacity.traffic import lengths_of

SERVER_CPU, *CLIENT_CPUS = sorted(os.sched_getaffinity(0))
LOADS = (0.95, 0.8, 0.5)  # the one that a change of the machine's speed would spoil most comes first
START_S = 60.0
ROOT = Path(__file__).resolve().parents[1]


class Run(msgspec.Struct, frozen=True):
    """An open-loop run: its share of the most that the calibration allows, its options and its report."""

    load: float
    options: Options
    report: Report
    moments: list[Moment] = msgspec.field(default_factory=list)  # `at` counts from the start of the run


class Measured(msgspec.Struct, frozen=True):
    """What `measure` writes."""

    calibration: Calibration
    runs: list[Run]
    after: Calibration | None = None  # the calibration after the runs


@contextmanager
def server(model: str, port: int, timed_engine: list[str] | None) -> Iterator[str]:
    """Runs `bei serve`, or that of capacity_server.py with its times; yields its URL."""
    start = ["-m", "bei_core.cli"] if timed_engine is None else ["-m", "benchmarks.capacity_server", *timed_engine]
    command = ["taskset", "-c", str(SERVER_CPU), sys.executable, *start, "serve", "--model", model, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url)
            yield url
        finally:
            process.terminate()


def wait_for(url: str) -> None:
    """Waits until a server is healthy. Raises TimeoutError if it is not within START_S."""
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        try:
            if urllib.request.urlopen(f"{url}/health", timeout=5).status == 200:
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(f"{url} is not healthy")


def measure(options: argparse.Namespace) -> None:
    """Calibrates a server, then measures it in open loops; writes both."""
    with server(options.model, options.port, options.timed_engine) as url:
        base = Options(url=url, workload=options.workload, client_cpus=CLIENT_CPUS)
        calibration = calibrate(base, options.level_s)
        print(calibration, file=sys.stderr)
        most = calibration.max_requests_per_s(fmean(lengths_of(options.workload, calibration)))
        runs = []
        for load in LOADS:
            count = round(load * most * options.run_s)
            each = msgspec.structs.replace(base, rate=load * most, num_requests=count, warmup=16, clients=16)
            runs.append(Run(load, each, *watched(each)))
            print(runs[-1].report, file=sys.stderr)
            write(options.output, Measured(calibration, runs))
        write(options.output, Measured(calibration, runs, calibrate(base, options.level_s)))


def write(output: Path, measured: Measured) -> None:
    """Writes what was measured as JSON."""
    output.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1))


def watched(options: Options) -> tuple[Report, list[Moment]]:
    """Runs an open loop; returns its report, and the counters at each moment of it."""
    with watch(split(options.url), WATCH_S) as moments:
        report = run(options)
        began = time.perf_counter() - report.wall_s
    return report, [msgspec.structs.replace(each, at=each.at - began) for each in moments]


def simulated(calibration: Calibration, options: Options) -> Result:
    """The same arrivals of the same texts, in simulated time."""
    sent = texts(options.workload, options.warmup + options.num_requests, options.seed)[options.warmup :]
    lengths = [calibration.num_tokens(len(text.split())) for text in sent]
    times = arrivals(options.rate, options.num_requests, options.seed)
    return simulate(calibration, zip(times, lengths, strict=True), scaling=Scaling(min_replica=1, max_replica=1))


def at_its_speed(calibration: Calibration, run: Run) -> Calibration:
    """The calibration with the speed that the machine had at each moment of a run, by the times of its batches.

    A run that was not watched has the speed of the calibration.
    """
    counters = run.report.counters
    mean_s = counters["bei_engine_busy_seconds_total"] / counters["te_batch_next_tokens_count"]
    found = list(speeds(run.moments, calibration)) or [(0.0, 1.0)]
    ends = [at - mean_s for at, _ in found]  # batches are counted when they end, and the simulation asks at their start
    moments = np.arange(0, run.report.wall_s, SLOWDOWN_S)
    nearest = np.minimum(np.searchsorted(ends, moments), len(ends) - 1)
    return msgspec.structs.replace(calibration, slowdowns=tuple(found[index][1] for index in nearest.tolist()))


def compare(options: argparse.Namespace) -> None:
    """Prints measured and simulated numbers side by side."""
    measured = msgspec.json.decode(options.input.read_bytes(), type=Measured)
    before, after = measured.calibration, measured.after or measured.calibration
    print("| load | mean batch time | | measured | calibrated before | calibrated after | at the speed of the run |")
    print("|--:|--:|---|--:|--:|--:|--:|")
    for each in sorted(measured.runs, key=lambda run: run.load):
        own = at_its_speed(before, each)
        change, real = fmean(own.slowdowns) - 1, of_report(each.report)
        results = [of_result(simulated(calibration, each.options)) for calibration in (before, after, own)]
        for name, value in real.items():
            cells = " | ".join(f"{found[name]:.1f} ({found[name] / value - 1:+.1%})" for found in results)
            print(f"| {each.load:.0%} | {change:+.1%} | {name} | {value:.1f} | {cells} |")


def of_report(report: Report) -> dict[str, float]:
    """The compared numbers of a measured run. Raises ValueError if nothing was answered."""
    latency, busy = report.latency_ms, report.engine_busy_share
    if latency is None or busy is None:
        raise ValueError("a run without an answer cannot be compared")
    return {"p50, ms": latency.p50, "p99, ms": latency.p99, "utilisation, %": busy * 100}


def of_result(result: Result) -> dict[str, float]:
    """The same numbers of a simulated run."""
    return {
        "p50, ms": result.percentile_ms(50),
        "p99, ms": result.percentile_ms(99),
        "utilisation, %": result.utilisation * 100,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--model", default=".models/all-MiniLM-L6-v2")
    one.add_argument("--workload", default="mixed")
    one.add_argument("--port", type=int, default=18431)
    one.add_argument("--level-s", type=float, default=2.0)
    one.add_argument("--run-s", type=float, default=30.0)
    one.add_argument(
        "--timed-engine",
        nargs=2,
        metavar=("MS", "US"),
        help="Put an engine that sleeps in the place of the model's: ms a batch, us a token. For a busy machine.",
    )
    one.add_argument("--output", type=Path, required=True)
    one.set_defaults(do=measure)
    two = commands.add_parser("compare")
    two.add_argument("input", type=Path)
    two.set_defaults(do=compare)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
