"""Holds a bulk job against its engine alone, in lockstep. Prints the ratios with their intervals.

A shared machine changes its speed within a second. So three processes take turns of one part (about a second): the job,
and two that give the same batches of token ids to the engine alone. A process stops itself (SIGSTOP, all its threads)
after the last batch of a part, so one of them runs at a time, and what the job reads, tokenizes, plans and writes
is in its own turns. The second engine alone shows how much two processes that do the same differ.

python benchmarks/jobs.py     # about four minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.open import open_engine
from bei_core.jobs.batches import plan_batches
from bei_core.jobs.inputs import open_input
from bei_core.jobs.job import Job
from bei_core.jobs.options import JobOptions
from bei_core.jobs.output import Folder

SIDES = ("job", "alone", "again")
WARM_UP = 2  # rounds that are not counted: the first run of a shape is slower
SAMPLES = 10_000  # of the bootstrap

Numbers = npt.NDArray[np.float64]


class Turn(NamedTuple):
    """What a process measured from the moment when it was continued until the last batch of a part ended."""

    seconds: float
    cpu_s: float  # of all its threads
    rss: int  # bytes


LAYOUT = struct.Struct("ddq")  # of a Turn


class Turns:
    """The engine of a process that takes turns: after the last batch of each part it tells of the turn, and stops."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self.num_batches: list[int] = []  # of each part
        self._engine, self._connection, self._left = engine, connection, 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - everything else is the engine's
        return getattr(self._engine, name)

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """f32[B, D]; see `Engine.forward`."""
        rows = self._engine.forward(batch)
        self._left -= 1
        if not self._left:
            seconds, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_began
            self._connection.send_bytes(LAYOUT.pack(seconds, cpu_s, psutil.Process().memory_info().rss))
            self.begin()
        return rows

    def begin(self) -> None:
        """Stops the process. When it is continued, a turn begins."""
        self._left = self.num_batches.pop(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._began, self._cpu_began = time.perf_counter(), time.process_time()


def run_side(side: str, options: argparse.Namespace, folder: Path, connection: Connection) -> None:
    """The process of a side: opens the engine, and computes part after part, each in a turn of its own."""
    settings = Settings.load({"model_id": options.model}, os.environ)
    opened, chosen = open_engine(settings), JobOptions(keep=("id",), rows_per_part=options.rows_per_part)
    turns = Turns(opened.engine, connection)
    data, output = open_input(str(folder / "in.jsonl"), chosen), folder / side
    output.mkdir()
    job = Job(replace(opened, engine=turns), settings, chosen, data, Folder(str(output)))
    batches = list[Batch]()
    for part in data.parts:
        tokens = job.prepare(part).encoded.tokens
        planned = list(plan_batches([len(each.ids) for each in tokens], turns.info.batch_tokens))
        batches += [Batch.pack([tokens[index] for index in batch]) for batch in planned]
        turns.num_batches.append(len(planned))
    turns.num_batches.append(0)  # after the last part; the process is ended then
    turns.begin()
    if side == "job":
        for _ in job.run(data.parts):
            pass
    else:
        for batch in batches:
            turns.forward(batch)


def turn_of(process: BaseProcess, connection: Connection) -> Turn:
    """Continues a process until it stops itself; returns its turn."""
    os.kill(process.pid or 0, signal.SIGCONT)
    turn = Turn(*LAYOUT.unpack(connection.recv_bytes()))
    wait_until_stopped(process)
    return turn


def wait_until_stopped(process: BaseProcess) -> None:
    """Waits until a process stops itself. Raises RuntimeError if it ends instead."""
    _, status = os.waitpid(process.pid or 0, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"{process.name} has ended; its error is above")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Turn]]:
    """Returns the turns of each side. Each round begins with another side."""
    write_rows(folder / "in.jsonl", options.rows_per_part * (options.rounds + WARM_UP), options.workload)
    context, started = multiprocessing.get_context("spawn"), dict[str, tuple[BaseProcess, Connection]]()
    try:
        for side in SIDES:
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=run_side, name=side, args=(side, options, folder, theirs))
            process.start()
            started[side] = process, ours
            wait_until_stopped(process)  # it is ready for its first turn
        found: dict[str, list[Turn]] = {side: [] for side in SIDES}
        until = time.monotonic() + options.seconds
        for number in range(options.rounds + WARM_UP):
            if time.monotonic() > until:
                break
            at = number % len(SIDES)
            for side in SIDES[at:] + SIDES[:at]:
                found[side].append(turn_of(*started[side]))
        return {side: turns[WARM_UP:] for side, turns in found.items()}
    finally:
        for process, _ in started.values():
            process.kill()


def write_rows(path: Path, num_rows: int, workload: str) -> None:
    """Writes short texts, each with a number, so that no two are the same."""
    with path.open("w", encoding="utf-8") as file:
        for index, text in enumerate(texts(workload, num_rows, seed=0)):
            file.write(json.dumps({"id": index, "text": f"{text} {index}"}) + "\n")


def interval(statistic: Callable[[Numbers, Numbers], float], above: Numbers, below: Numbers) -> str:
    """Returns a statistic of pairs in percent, and the 95% interval of its bootstrap."""
    draws = np.random.default_rng(0).integers(len(above), size=(SAMPLES, len(above)))
    low, high = np.percentile([statistic(above[draw], below[draw]) for draw in draws], [2.5, 97.5])
    return f"{statistic(above, below):.1%} ({low:.1%} to {high:.1%})"


def of_pairs(above: Numbers, below: Numbers) -> float:
    """The median of the ratios."""
    return float(np.median(above / below))


def of_totals(above: Numbers, below: Numbers) -> float:
    """The ratio of the sums."""
    return float(above.sum() / below.sum())


def report(turns: dict[str, list[Turn]], rows_per_part: int) -> None:
    """Prints the times and the ratios."""
    for unit, name in (("seconds", "speed"), ("cpu_s", "processor time")):
        job, alone, again = (np.array([getattr(turn, unit) for turn in turns[side]]) for side in SIDES)
        for side, numbers in zip(SIDES, (job, alone, again), strict=True):
            mean, low, high = np.array([numbers.mean(), *np.percentile(numbers, [10, 90])]) / rows_per_part * 1e3
            print(f"{side}: {name}, ms a row: {mean:.3f} (80% of {len(numbers)} turns: {low:.3f} to {high:.3f})")
        for what, one, other in (("job / engine", (alone + again) / 2, job), ("engine / engine", alone, again)):
            above, below = (one, other) if unit == "seconds" else (other, one)
            print(f"{name}, {what}: {interval(of_pairs, above, below)}; of totals {interval(of_totals, above, below)}")
    print("RSS of the job in MB after each part:", *(f"{turn.rss / 1e6:.0f}" for turn in turns["job"]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".models/all-MiniLM-L6-v2")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--rows-per-part", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=60, help="at most so many")
    parser.add_argument("--seconds", type=float, default=240.0, help="no round begins later")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(measure(options, Path(folder)), options.rows_per_part)


if __name__ == "__main__":
    main()
