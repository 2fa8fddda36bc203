"""Holds the capacity model against a measured server, which has one processor; the load generator has the others.

A shared machine changes its speed. So after the calibration, short slices of open loops alternate with turns of a
closed loop that measure the speed alone. The forecast of a slice has the speeds of the turn before and the turn after
it. Its interval comes from forecasts that draw each slice's turn at random from all turns.

python benchmarks/capacity.py measure --output measured.json     # starts a server; about four minutes
python benchmarks/capacity.py compare measured.json              # prints the table of docs/capacity.md
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, harmonic_mean

import msgspec
import numpy as np
from tokenizers import Tokenizer

from bei_core.bench import Options, run
from bei_core.bench.calibrate import SLOWDOWN_S, WATCH_S, Calibration, calibrate, speeds
from bei_core.bench.measure import run_with_latencies, split
from bei_core.bench.observe import BUSY_S, Moment, watch
from bei_core.bench.pace import arrivals
from bei_core.bench.workload import texts
from bei_core.capacity.autoscaler import Scaling
from bei_core.capacity.simulation import Result, simulate
from bei_core.capacity.traffic import lengths_of

SERVER_CPU, *CLIENT_CPUS = sorted(os.sched_getaffinity(0))
LOADS = (0.95, 0.8, 0.5)
CLIENTS = 32  # of a turn: batches are full
FORECASTS = 40  # of an interval
START_S = 60.0
ROOT = Path(__file__).resolve().parents[1]


class Slice(msgspec.Struct, frozen=True):
    """A few seconds of an open loop."""

    load: float  # share of the most that the calibration allows, at the speed of the turn before
    options: Options
    lengths: list[int]  # tokens of each text
    latencies_ms: list[float]
    wall_s: float
    busy_s: float  # of the engine
    moments: list[Moment]  # `at` counts from the start of the slice


class Measured(msgspec.Struct, frozen=True):
    """What `measure` writes. Slice `i` is between the speeds `i` and `i + 1`."""

    calibration: Calibration
    slices: list[Slice]
    speeds: list[list[float]]  # of each turn: the factors by which batches took longer than calibrated, each WATCH_S


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
    """Calibrates a server; then a turn that measures its speed and a slice of an open loop alternate."""
    with server(options.model, options.port, options.timed_engine) as url:
        tokenizer = Tokenizer.from_file(str(Path(options.model) / "tokenizer.json"))
        tokenizer.no_padding()
        base = Options(url=url, workload=options.workload, client_cpus=CLIENT_CPUS)
        calibration = calibrate(base, options.level_s)
        print(calibration, file=sys.stderr)
        most = calibration.max_requests_per_s(fmean(lengths_of(options.workload, calibration)))
        found = Measured(calibration, [], [speed(calibration, base, most * options.turn_s)])
        until = time.monotonic() + options.seconds
        for number in range(options.rounds * len(LOADS)):
            if time.monotonic() > until and number % len(LOADS) == 0:
                break
            load = LOADS[number % len(LOADS)]
            rate = load * most / harmonic_mean(found.speeds[-1])
            each = msgspec.structs.replace(
                base, rate=rate, num_requests=max(1, round(rate * options.slice_s)), warmup=16, clients=16, seed=number
            )
            found.slices.append(slice_of(load, each, tokenizer))
            found.speeds.append(speed(calibration, base, most * options.turn_s))
            options.output.write_bytes(msgspec.json.encode(found))
            print(load, f"{rate:.1f} requests/s", f"{fmean(found.speeds[-1]):.2f}", file=sys.stderr)


def speed(calibration: Calibration, base: Options, num_requests: float) -> list[float]:
    """The factors by which the batches of a closed loop take longer than calibrated, one for each WATCH_S."""
    turn = msgspec.structs.replace(base, clients=CLIENTS, warmup=CLIENTS, num_requests=round(num_requests))
    with watch(split(base.url), WATCH_S) as moments:
        run(turn)
    return [factor for _, factor in speeds(moments, calibration)]


def slice_of(load: float, options: Options, tokenizer: Tokenizer) -> Slice:
    """Runs an open loop, and reads the counters at each moment of it."""
    sent = texts(options.workload, options.warmup + options.num_requests, options.seed)[options.warmup :]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(sent)]
    with watch(split(options.url), WATCH_S) as moments:
        report, latencies_ms = run_with_latencies(options)
        began = time.perf_counter() - report.wall_s
    moments = [msgspec.structs.replace(each, at=each.at - began) for each in moments]
    return Slice(load, options, lengths, latencies_ms, report.wall_s, report.counters[BUSY_S], moments)


def simulated(calibration: Calibration, each: Slice) -> Result:
    """The same arrivals of the same texts, in simulated time."""
    times = arrivals(each.options.rate, each.options.num_requests, each.options.seed)
    return simulate(calibration, zip(times, each.lengths, strict=True), scaling=Scaling(min_replica=1, max_replica=1))


def with_speeds(factors: Sequence[float], calibration: Calibration) -> Calibration:
    """The calibration with other factors of the time of batches, one for each WATCH_S."""
    steps = np.repeat(factors, round(WATCH_S / SLOWDOWN_S))
    return msgspec.structs.replace(calibration, slowdowns=tuple(steps.tolist()))


def at_its_speed(calibration: Calibration, each: Slice) -> Calibration:
    """The calibration with the speed that the machine had at each moment of a slice, by the times of its batches."""
    found = list(speeds(each.moments, calibration)) or [(0.0, 1.0)]
    num_batches = max(1.0, each.moments[-1].num_batches - each.moments[0].num_batches) if each.moments else 1.0
    ends = [at - each.busy_s / num_batches for at, _ in found]  # batches are counted when they end
    moments = np.arange(0, each.wall_s, SLOWDOWN_S)
    nearest = np.minimum(np.searchsorted(ends, moments), len(ends) - 1)
    return msgspec.structs.replace(calibration, slowdowns=tuple(found[index][1] for index in nearest.tolist()))


def compare(options: argparse.Namespace) -> None:
    """Prints measured and simulated numbers side by side."""
    measured = msgspec.json.decode(options.input.read_bytes(), type=Measured)
    calibration, turns = measured.calibration, measured.speeds
    print("| load | | measured | forecast | 90% of forecasts | at the speed of the slices |")
    print("|--:|---|--:|--:|--:|--:|")
    draw = random.Random(0)
    for load in sorted(LOADS):
        slices = [(index, each) for index, each in enumerate(measured.slices) if each.load == load]
        beside = [with_speeds(turns[index] + turns[index + 1], calibration) for index, _ in slices]
        forecast = numbers([simulated(own, each) for own, (_, each) in zip(beside, slices, strict=True)])
        own = numbers([simulated(at_its_speed(calibration, each), each) for _, each in slices])
        others = [
            numbers([simulated(with_speeds(draw.choice(turns), calibration), each) for _, each in slices])
            for _ in range(FORECASTS)
        ]
        for name, value in of_slices([each for _, each in slices]).items():
            low, high = np.percentile([other[name] for other in others], [5, 95])
            first, second = (f"{found[name]:.1f} ({found[name] / value - 1:+.1%})" for found in (forecast, own))
            print(f"| {load:.0%} | {name} | {value:.1f} | {first} | {low:.1f} to {high:.1f} | {second} |")


def of_slices(slices: Sequence[Slice]) -> dict[str, float]:
    """The compared numbers of all measured slices of a load."""
    latencies = [latency for each in slices for latency in each.latencies_ms]
    busy = sum(each.busy_s for each in slices) / sum(each.wall_s for each in slices)
    return compared(latencies, busy)


def numbers(results: Sequence[Result]) -> dict[str, float]:
    """The same numbers of simulated slices."""
    latencies = [latency * 1e3 for result in results for latency in result.latency_s]
    return compared(latencies, sum(each.busy_s for each in results) / sum(each.replica_s for each in results))


def compared(latencies_ms: Sequence[float], busy: float) -> dict[str, float]:
    """Percentiles of the latency, and the share of the time in which the engine computed."""
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return {"p50, ms": p50, "mean, ms": fmean(latencies_ms), "p99, ms": p99, "utilisation, %": busy * 100}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--model", default=".models/all-MiniLM-L6-v2")
    one.add_argument("--workload", default="mixed")
    one.add_argument("--port", type=int, default=18431)
    one.add_argument("--level-s", type=float, default=4.0)
    one.add_argument("--turn-s", type=float, default=2.5)
    one.add_argument("--slice-s", type=float, default=5.0)
    one.add_argument("--rounds", type=int, default=8, help="at most so many slices of each load")
    one.add_argument("--seconds", type=float, default=150.0, help="no round begins later")
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
