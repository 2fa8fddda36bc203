"""How much a second worker adds to a bulk job: workers of Ray, held against processes that are pinned to a processor.

Each job is measured while all its workers compute, by the times of the parts that they write. Needs the environment of
`make test-ray` and two processors. Two pinned processes share memory bandwidth and caches as two workers do, so what
they reach is what a second worker can add.

PYTHONPATH=packages:. .venv-ray/bin/python benchmarks/ray_workers.py     # about four minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bei_core.bench.workload import texts

ROOT = Path(__file__).resolve().parents[1]
ROWS_PER_PART = 128
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'packages'}:{ROOT}", "RAY_USAGE_STATS_ENABLED": "0"}


def write_halves(folder: Path, num_rows: int, workload: str) -> None:
    """Writes a data set in two files; each is the input of one pinned process."""
    lines = [json.dumps({"id": index, "text": text}) for index, text in enumerate(texts(workload, num_rows, 1))]
    for half in range(2):
        input_folder = folder / f"in-{half}"
        input_folder.mkdir()
        (input_folder / "rows.jsonl").write_text("\n".join(lines[half::2]))


def start(
    model: str, source: Path, output: Path, prefix: Sequence[str] = (), flags: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Starts `bei embed-dataset`."""
    command = [*prefix, sys.executable, "-m", "bei_core.cli", "embed-dataset", str(source), "--output", str(output)]
    command += ["--rows-per-part", str(ROWS_PER_PART), "--model-id", model, *flags]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def rate(outputs: Sequence[Path]) -> float:
    """Returns the rows per second that were written while all jobs ran, without the first fifth and the last tenth."""
    times = [sorted(part.stat().st_mtime for part in output.glob("part-*")) for output in outputs]
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    shared = sorted(at for each in times for at in each if begin <= at <= end)
    middle = shared[len(shared) // 5 : -(len(shared) // 10)]
    return (len(middle) - 1) * ROWS_PER_PART / (middle[-1] - middle[0])


def run(jobs: dict[Path, subprocess.Popen[bytes]]) -> float:
    """Returns the rate of jobs that run at the same time, by their output. Raises RuntimeError if one fails."""
    for output, job in jobs.items():
        if job.wait():
            raise RuntimeError(f"the job that writes {output} failed")
    return rate(list(jobs))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measures the four jobs and prints their rates, and the efficiency of the second worker."""
    write_halves(folder, options.rows, options.workload)
    pinned = {}
    for count in (1, 2):
        outputs = [folder / f"pinned-{count}-{half}" for half in range(count)]
        pinned[count] = run(
            {
                output: start(options.model, folder / f"in-{half}", output, ("taskset", "-c", str(half)))
                for half, output in enumerate(outputs)
            }
        )
        print(f"{count} pinned: {pinned[count]:.1f} rows/s", flush=True)
    of_ray = {}
    for count in (1, 2):
        source = folder / "in-0" if count == 1 else folder / "in-*"
        output = folder / f"ray-{count}"
        flags = ("--ray", "local", "--ray-workers", str(count))
        of_ray[count] = run({output: start(options.model, source, output, flags=flags)})
        print(f"{count} of Ray: {of_ray[count]:.1f} rows/s", flush=True)
    scaling, ideal = of_ray[2] / of_ray[1], pinned[2] / pinned[1]
    print(f"with the second: {scaling:.2f} times on Ray, {ideal:.2f} times pinned; efficiency {scaling / ideal:.1%}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--workload", default="short")
    parser.add_argument("--rows", type=int, default=6144)
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
