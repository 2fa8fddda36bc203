"""A bulk job that is killed at random moments, again and again.

python -m tests.chaos.job_process SEED KILLS INPUT OUTPUT

A process is forked in each trial; it goes on with the job in OUTPUT, and is killed at a random moment of the time that
the whole job takes. A job that was done before is checked, and begins again. The fork happens before OpenVINO has any
thread, and saves each process the seconds that imports take. The model is that of the environment.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from bei_core.config.settings import Settings
from bei_core.engines.openvino import engine as _engine  # noqa: F401 - before the forks
from bei_core.jobs import JobOptions, embed

OPTIONS = JobOptions(keep=("id",), rows_per_part=10)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fork(source: Path, output: Path) -> int:
    """A process that runs the job; its id."""
    child = os.fork()
    if child == 0:
        try:
            embed(source, output, settings=Settings.load({}, os.environ), options=OPTIONS)
        except BaseException as fault:  # a forked process must not go on as its parent
            print(f"failed: {type(fault).__name__}: {fault}", flush=True)
            os._exit(1)
        os._exit(0)
    return child


def finish(source: Path, output: Path) -> dict[str, bytes]:
    """Runs the job to its end. Raises SystemExit if it fails."""
    if os.waitpid(fork(source, output), 0)[1] != 0:
        raise SystemExit("the job failed")
    return contents(output)


def check_parts(output: Path) -> int:
    """The number of parts. Raises pyarrow's error if one of them is not a whole Parquet file."""
    parts = list(output.glob("part-*"))
    for part in parts:
        pq.read_metadata(part)
    return len(parts)


def kill(seed: int, kills: int, source: Path, output: Path) -> None:
    """Raises SystemExit if a job that was killed does not go on, or ends with other bytes than one that was not."""
    whole = output.with_name("whole")
    finish(source, whole)  # builds the engine
    shutil.rmtree(whole)
    began = time.monotonic()
    expected = finish(source, whole)
    duration_s, moments, done = time.monotonic() - began, random.Random(seed), 0
    while done < kills:
        child = fork(source, output)
        time.sleep(moments.uniform(0, duration_s))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            done += 1
            print(f"killed with {check_parts(output)} parts", flush=True)
        elif contents(output) != expected:
            raise SystemExit("the job was through, with other bytes")
        else:
            print("was through", flush=True)
            shutil.rmtree(output)
    if finish(source, output) != expected:
        raise SystemExit("the job ended with other bytes")


if __name__ == "__main__":
    kill(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
