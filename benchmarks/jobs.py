"""Holds a bulk job against its engine alone: the same texts in the same batches, in turns. Prints the ratios.

The engine alone gets batches of token ids; reading, tokenizing, planning and writing are in the time of the job only.
A shared machine changes its speed by the second, so the rounds are short and every other one begins with the job.

python benchmarks/jobs.py --rounds 20     # about four minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened, open_engine
from bei_core.jobs.batches import plan_batches
from bei_core.jobs.inputs import Input, open_input
from bei_core.jobs.job import Job
from bei_core.jobs.options import JobOptions
from bei_core.jobs.output import Folder
from bei_core.jobs.report import Report


def write_rows(path: Path, num_rows: int, workload: str) -> None:
    """Writes short texts, each with a number, so that no two are the same."""
    with path.open("w", encoding="utf-8") as file:
        for index, text in enumerate(texts(workload, num_rows, seed=0)):
            file.write(json.dumps({"id": index, "text": f"{text} {index}"}) + "\n")


def batches_of(opened: Opened, job: Job, data: Input) -> list[Batch]:
    """Returns the batches of a job, ready for the engine."""
    batches = []
    for part in data.parts:
        tokens = job.prepare(part).encoded.tokens
        planned = plan_batches([len(each.ids) for each in tokens], opened.engine.info.batch_tokens)
        batches += [Batch.pack([tokens[index] for index in batch]) for batch in planned]
    return batches


def engine_alone(opened: Opened, batches: Sequence[Batch]) -> float:
    """Returns the seconds that the engine takes for the batches."""
    began = time.perf_counter()
    for batch in batches:
        opened.engine.forward(batch)
    return time.perf_counter() - began


def whole_job(job: Job, data: Input, rss: list[int]) -> Report:
    """Runs a job from the file to the files; returns its report. Adds the RSS after each part."""
    total, began = Report(), time.perf_counter()
    for report in job.run(data.parts):
        total.add(report)
        rss.append(psutil.Process().memory_info().rss)
    total.seconds = time.perf_counter() - began
    return total


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measures in turns and prints the rates."""
    write_rows(folder / "in.jsonl", options.rows, options.workload)
    settings = Settings.load({"model_id": options.model}, os.environ)
    opened, chosen = open_engine(settings), JobOptions(keep=("id",), rows_per_part=options.rows_per_part)
    data, times, rss = open_input(str(folder / "in.jsonl"), chosen), list[tuple[float, float]](), list[int]()

    def new_job(name: str) -> Job:
        (folder / name).mkdir()
        return Job(opened, settings, chosen, data, Folder(str(folder / name)))

    batches = batches_of(opened, new_job("batches"), data)
    engine_alone(opened, batches)  # the first run of a shape is slower
    for number in range(options.rounds):
        job = new_job(f"out-{number}")
        if number % 2:
            report = whole_job(job, data, rss)
            alone = engine_alone(opened, batches)
        else:
            alone = engine_alone(opened, batches)
            report = whole_job(job, data, rss)
        times.append((alone, report.seconds))
        print(
            f"engine alone {options.rows / alone:.1f} rows/s; job {alone / report.seconds:.1%} of it: {report}",
            flush=True,
        )
    ratios = [alone / seconds for alone, seconds in times]
    of_totals = sum(alone for alone, _ in times) / sum(seconds for _, seconds in times)
    print(f"median of the ratios {median(ratios):.1%}, {of_totals:.1%} of the totals; RSS in MB after each part:")
    print(*(f"{each / 1e6:.0f}" for each in rss))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".models/all-MiniLM-L6-v2")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rows-per-part", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
