"""How much a second worker adds to a bulk job: workers of Ray, held against processes that are pinned to a processor.

A shared machine changes its speed within seconds. So four jobs take turns: one pinned process, two, one worker of Ray,
and two. Those that do not have their turn are stopped (SIGSTOP). Needs the environment of `make test-ray` and two
processors. Two pinned processes share memory bandwidth and caches as two workers do, so what they reach is what a
second worker can add.

PYTHONPATH=packages:. .venv-ray/bin/python benchmarks/ray_workers.py     # about four minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from bei_core.bench.workload import texts

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'packages'}:{ROOT}", "RAY_USAGE_STATS_ENABLED": "0"}
WORKER = "ray::MapWorker"  # how Ray names the processes of the actors
START_S = 120.0
WARM_UP = 1  # rounds that are not counted
SAMPLES = 10_000  # of the bootstrap


@dataclass
class Side:
    """Jobs that run at the same time: one or two pinned processes, or a job on Ray with one or two workers."""

    name: str
    jobs: list[subprocess.Popen[bytes]]
    outputs: list[Path]
    num_parts: list[int] = field(default_factory=list)  # of each turn
    seconds: list[float] = field(default_factory=list)

    def wait(self) -> None:
        """Waits until each worker has written parts, then stops them. Raises TimeoutError if they do not."""
        until = time.monotonic() + START_S
        while len(self.processes()) * 3 > self.published() or not all(
            any(each.glob("part-*")) for each in self.outputs
        ):
            if time.monotonic() > until or any(job.poll() is not None for job in self.jobs):
                raise TimeoutError(f"{self.name} wrote no parts; its error is above")
            time.sleep(0.2)
        self.send(signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Lets the workers compute for some seconds, and counts their parts."""
        before, began = self.published(), time.perf_counter()
        self.send(signal.SIGCONT)
        time.sleep(seconds)
        self.send(signal.SIGSTOP)
        self.seconds.append(time.perf_counter() - began)
        self.num_parts.append(self.published() - before)

    def processes(self) -> list[psutil.Process]:
        """The processes that compute."""
        if not self.name.endswith("of Ray"):
            return [psutil.Process(job.pid) for job in self.jobs]
        below = psutil.Process(self.jobs[0].pid).children(recursive=True)
        return [each for each in below if WORKER in " ".join(each.cmdline())]

    def published(self) -> int:
        """The number of parts that are written."""
        return sum(1 for output in self.outputs for _ in output.glob("part-*"))

    def send(self, number: signal.Signals) -> None:
        """Stops or continues the processes that compute."""
        for process in self.processes():
            process.send_signal(number)

    def end(self) -> None:
        """Ends all processes."""
        self.send(signal.SIGCONT)
        for job in self.jobs:
            job.terminate()
        for job in self.jobs:
            job.wait()


def write_halves(folder: Path, num_rows: int, workload: str) -> None:
    """Writes a data set in two files; each is the input of one pinned process."""
    lines = [json.dumps({"id": index, "text": text}) for index, text in enumerate(texts(workload, num_rows, 1))]
    for half in range(2):
        input_folder = folder / f"in-{half}"
        input_folder.mkdir()
        (input_folder / "rows.jsonl").write_text("\n".join(lines[half::2]))


def start(
    options: argparse.Namespace, source: Path, output: Path, prefix: Sequence[str] = (), flags: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Starts `bei embed-dataset`."""
    command = [*prefix, sys.executable, "-m", "bei_core.cli", "embed-dataset", str(source), "--output", str(output)]
    command += ["--rows-per-part", str(options.rows_per_part), "--model-id", options.model, *flags]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def sides(options: argparse.Namespace, folder: Path) -> list[Side]:
    """Starts the jobs, one after the other; returns them stopped."""
    write_halves(folder, options.rows, options.workload)
    found = list[Side]()
    for count in (1, 2):
        outputs = [folder / f"pinned-{count}-{half}" for half in range(count)]
        jobs = [
            start(options, folder / f"in-{half}", output, ("taskset", "-c", str(half)))
            for half, output in enumerate(outputs)
        ]
        found.append(Side(f"{count} pinned", jobs, outputs))
        found[-1].wait()
    for count in (1, 2):
        output = folder / f"ray-{count}"
        job = start(options, folder / "in-*" / "*", output, flags=("--ray", "local", "--ray-workers", str(count)))
        found.append(Side(f"{count} of Ray", [job], [output]))
        found[-1].wait()
    return found


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measures the jobs in turns; prints their rates, and the efficiency of the second worker."""
    found = sides(options, folder)
    try:
        until = time.monotonic() + options.seconds
        while time.monotonic() < until:
            for side in found:
                side.turn(options.turn_s)
    finally:
        for side in found:
            side.end()
    rates = {side.name: np.array(side.num_parts) / np.array(side.seconds) * options.rows_per_part for side in found}
    rates = {name: each[WARM_UP:] for name, each in rates.items()}
    for name, each in rates.items():
        print(f"{name}: {each.mean():.1f} rows/s in {len(each)} turns")
    one, two, ray_one, ray_two = rates.values()
    draws = np.random.default_rng(0).integers(len(one), size=(SAMPLES, len(one)))
    of_draws = (ray_two[draws].mean(1) / ray_one[draws].mean(1)) / (two[draws].mean(1) / one[draws].mean(1))
    low, high = np.percentile(of_draws, [2.5, 97.5])
    scaling, ideal = ray_two.mean() / ray_one.mean(), two.mean() / one.mean()
    print(f"with the second: {scaling:.2f} times on Ray, {ideal:.2f} times pinned")
    print(f"efficiency {scaling / ideal:.1%} (95% interval {low:.1%} to {high:.1%})")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--workload", default="short")
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--rows-per-part", type=int, default=128, help="about as many as a worker computes in a second")
    parser.add_argument("--turn-s", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=180.0, help="no round begins later")
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
