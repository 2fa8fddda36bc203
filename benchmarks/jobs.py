"""Holds a bulk job against its engine alone: the same texts in the same batches, in turns. Prints the ratio.

python benchmarks/jobs.py --rounds 4      # about a minute a round on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
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


def engine_alone(opened: Opened, job: Job, data: Input) -> float:
    """Returns rows per second of the engine, which gets the tokens of each part ready in batches."""
    batches = []
    for part in data.parts:
        tokens = job.prepare(part).encoded.tokens
        planned = plan_batches([len(each.ids) for each in tokens], opened.engine.info.batch_tokens)
        batches += [Batch.pack([tokens[index] for index in batch]) for batch in planned]
    num_rows = sum(part.split.num_rows for part in data.parts)
    began = time.perf_counter()
    for batch in batches:
        opened.engine.forward(batch)
    return num_rows / (time.perf_counter() - began)


def whole_job(job: Job, data: Input, rss: list[int]) -> tuple[float, Report]:
    """Returns rows per second of a job from the file to the files, and its report. Adds the RSS after each part."""
    total, began = Report(), time.perf_counter()
    for report in job.run(data.parts):
        total.add(report)
        rss.append(psutil.Process().memory_info().rss)
    total.seconds = time.perf_counter() - began
    return total.num_rows / total.seconds, total


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measures in turns and prints the rates."""
    write_rows(folder / "in.jsonl", options.rows, options.workload)
    settings = Settings.load({"model_id": options.model}, os.environ)
    opened, chosen = open_engine(settings), JobOptions(keep=("id",), rows_per_part=options.rows_per_part)
    data, rates, rss = open_input(str(folder / "in.jsonl"), chosen), list[tuple[float, float]](), list[int]()
    for number in range(options.rounds):
        output = folder / f"out-{number}"
        output.mkdir()
        job = Job(opened, settings, chosen, data, Folder(str(output)))
        alone = engine_alone(opened, job, data)
        rate, report = whole_job(job, data, rss)
        rates.append((alone, rate))
        print(f"engine alone {alone:.1f} rows/s, job {rate:.1f} rows/s ({rate / alone:.1%}); {report}", flush=True)
    print(f"median of the ratios {median(rate / alone for alone, rate in rates):.1%}; RSS in MB after each part:")
    print(*(f"{each / 1e6:.0f}" for each in rss))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".models/all-MiniLM-L6-v2")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--rows-per-part", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=4)
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
