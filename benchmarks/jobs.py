"""Holds a bulk job against its engine alone, in lockstep. Prints the ratios with their intervals, padding and memory.

A shared machine changes its speed within a second. So three processes take turns of one part (about a second): the job,
and two that give the same batches of token ids to the engine alone. A process stops itself (SIGSTOP, all its threads)
after each part, so one of them runs at a time, and what the job reads, tokenizes, plans and writes is in its own turns.
The second engine alone shows how much two processes that do the same differ. Memory is the peak within each turn: at
the moment when a part ends, there are more or fewer of its vectors and tokens.

python benchmarks/jobs.py     # about four minutes on two cores
python benchmarks/jobs.py --dtype int8 --rows 1000000 --rows-per-part 8192 --every 4 --seconds 14400     # up to an hour
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
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.engines.open import open_engine
from bei_core.jobs.inputs import open_input
from bei_core.jobs.job import Job, tune_process
from bei_core.jobs.options import JobOptions
from bei_core.jobs.output import Folder

SIDES = ("job", "alone", "again")
WARM_UP = 2  # rounds of all sides that are not counted: the first run of a shape is slower
SAMPLES = 10_000  # of the bootstrap
NUM_TEXTS = 20_000  # different texts; their repetitions differ by a number

Numbers = npt.NDArray[np.float64]


class Turn(NamedTuple):
    """What a process measured from the moment when it was continued until a part was computed."""

    seconds: float
    cpu_s: float  # of all its threads
    peak_rss: int  # bytes
    num_tokens: int
    num_padded: float  # tokens with padding; 0 in the engine alone


LAYOUT = struct.Struct("ddqqd")  # of a Turn


class Turns:
    """The turns of a process, which stops itself between them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self) -> None:
        """Stops the process. When it is continued, a turn begins."""
        os.kill(os.getpid(), signal.SIGSTOP)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak of the resident memory, begins again
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def end(self, num_tokens: int, num_padded: float) -> None:
        """Sends what the turn took."""
        seconds, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_began
        lines = Path("/proc/self/status").read_text().splitlines()
        peak_rss = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
        self._connection.send_bytes(LAYOUT.pack(seconds, cpu_s, peak_rss, num_tokens, num_padded))


def run_side(side: str, options: argparse.Namespace, folder: Path, connection: Connection) -> None:
    """The process of a side: opens the engine, and computes part after part, each in a turn of its own."""
    tune_process()
    settings = Settings.load({"model_id": options.model, "dtype": options.dtype}, os.environ)
    opened, chosen = open_engine(settings, for_job=True), JobOptions(keep=("id",), rows_per_part=options.rows_per_part)
    data, output, turns = open_input(str(folder / "in.jsonl"), chosen), folder / side, Turns(connection)
    output.mkdir()
    job = Job(opened, settings, chosen, data, Folder(str(output)))
    if side == "job":
        turns.begin()
        for report in job.run(data.parts):
            turns.end(report.num_tokens, report.num_padded)
            turns.begin()
        return
    pool = ThreadPoolExecutor(opened.engine.info.num_callers)  # its threads end with the process, which is killed
    for part in data.parts[:: options.every]:
        tokens = job.prepare(part).encoded.tokens
        batches = [batch for _, batch in job.worker.batches(tokens)]
        turns.begin()
        deque(pool.map(opened.engine.forward, batches), maxlen=0)
        turns.end(sum(batch.num_tokens for batch in batches), 0.0)
    turns.begin()


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
    """Returns the turns of each side. Each round begins with another side; every so many rounds have all sides."""
    write_rows(folder / "in.jsonl", options.rows, options.workload)
    num_parts = options.rows // options.rows_per_part  # a last part with fewer rows is not measured
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
        for number in range(num_parts):
            if time.monotonic() > until:
                break
            at = number // options.every % len(SIDES)
            for side in SIDES[at:] + SIDES[:at] if number % options.every == 0 else SIDES[:1]:
                found[side].append(turn_of(*started[side]))
            if (number + 1) * 20 // num_parts > number * 20 // num_parts:
                done, rss = (number + 1) / num_parts, found["job"][-1].peak_rss / 1e6
                print(f"{done:.0%} of the parts, peak RSS of the job in the last one {rss:.1f} MB", flush=True)
        return found
    finally:
        for process, _ in started.values():
            process.kill()


def write_rows(path: Path, num_rows: int, workload: str) -> None:
    """Writes texts, each with a number, so that no two are the same."""
    found = texts(workload, min(num_rows, NUM_TEXTS), seed=0)
    with path.open("w", encoding="utf-8") as file:
        for index, text in zip(range(num_rows), cycle(found)):
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


def report(turns: dict[str, list[Turn]], rows_per_part: int, every: int) -> None:
    """Prints the whole job, and the times and ratios of the parts that all sides computed."""
    whole, tokens = turns["job"], sum(turn.num_tokens for turn in turns["job"])
    seconds, num_rows = sum(turn.seconds for turn in whole), len(whole) * rows_per_part
    early, *later = (turn.peak_rss for turn in whole[len(whole) // 20 :])
    print(f"job: {num_rows} rows, {num_rows / seconds:.1f} rows/s, {tokens / seconds:.0f} tokens/s", end=", ")
    print(f"{1 - tokens / sum(turn.num_padded for turn in whole):.2%} padding")
    print(f"peak RSS of the job in a part after 5%: {early / 1e6:.1f} MB; later", end=" ")
    print(f"{min(later) / early - 1:+.1%} to {max(later) / early - 1:+.1%}, {later[-1] / early - 1:+.1%} at the end")
    sides = {side: (found[::every] if side == "job" else found)[WARM_UP:] for side, found in turns.items()}
    for unit, name in (("seconds", "speed"), ("cpu_s", "processor time")):
        job, alone, again = (np.array([getattr(turn, unit) for turn in sides[side]]) for side in SIDES)
        for side, numbers in zip(SIDES, (job, alone, again), strict=True):
            mean, low, high = np.array([numbers.mean(), *np.percentile(numbers, [10, 90])]) / rows_per_part * 1e3
            print(f"{side}: {name}, ms a row: {mean:.3f} (80% of {len(numbers)} turns: {low:.3f} to {high:.3f})")
        for what, one, other in (("job / engine", (alone + again) / 2, job), ("engine / engine", alone, again)):
            above, below = (one, other) if unit == "seconds" else (other, one)
            print(f"{name}, {what}: {interval(of_pairs, above, below)}; of totals {interval(of_totals, above, below)}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".models/all-MiniLM-L6-v2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--rows", type=int, default=31744)
    parser.add_argument("--rows-per-part", type=int, default=512)
    parser.add_argument("--every", type=int, default=1, help="the engine alone computes only one of so many parts")
    parser.add_argument("--seconds", type=float, default=240.0, help="no round begins later")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(measure(options, Path(folder)), options.rows_per_part, options.every)


if __name__ == "__main__":
    main()
