"""A process that opens a model from the cache, proves that it answers, and ends.

`python -m tests.chaos.cache_process open` does it once. `… kill SEED KILLS` forks such a process in each trial, on a
cache that is empty in every second one, and kills it at a random moment; then another process must succeed. Trials
go on until KILLS processes were killed: those that end before show that a start takes less time. The fork happens
before OpenVINO has any thread, and saves each process the second that imports take.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time

import numpy as np

from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.cache import EngineCache
from bei_core.engines.manifest import verify
from bei_core.engines.open import open_engine
from bei_core.logs import configure_logging
from bei_core.tasks import Tokens


def answer(settings: Settings) -> None:
    """Prints the row of a text in hex; raises where the engine cannot be opened or the row is no vector."""
    opened = open_engine(settings)
    row = opened.engine.forward(Batch.pack([Tokens(np.arange(5, 9, dtype=np.int32), np.zeros(4, np.int32))]))[0]
    if not np.isfinite(row).all():
        raise ArithmeticError("the engine gave a row that is not finite")
    print(f"row {row.tobytes().hex()}", flush=True)
    opened.close()


def kill(settings: Settings, seed: int, kills: int) -> None:
    """Raises SystemExit where a start after a kill fails, or CheckpointError where an engine is not whole."""
    moments = random.Random(seed)
    root = EngineCache.of(settings).root
    longest = dict.fromkeys((False, True), _timed(settings))  # seconds of a start, by whether the cache is empty
    done = trial = 0
    while done < kills and trial < 4 * kills:
        trial += 1
        is_empty = trial % 2 == 0
        if is_empty:
            shutil.rmtree(root)
        child, moment = _fork(settings), moments.uniform(0, longest[is_empty])
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        done += killed
        if not killed:
            longest[is_empty] = moment  # it took no longer
        for folder in root.glob("[0-9a-f]*"):
            verify(folder)  # every entry is whole
        if os.waitpid(_fork(settings), 0)[1] != 0:
            raise SystemExit(f"trial {trial}: the start after a kill failed")
        left = len(list(root.glob(".tmp-*")))
        print(f"trial {trial} {'killed' if killed else 'was through'}, left {left}", flush=True)


def _timed(settings: Settings) -> float:
    """Seconds that a start with a build takes."""
    started = time.monotonic()
    if os.waitpid(_fork(settings), 0)[1] != 0:
        raise SystemExit("the first start failed")
    return time.monotonic() - started


def _fork(settings: Settings) -> int:
    child = os.fork()
    if child == 0:
        try:
            answer(settings)
        except BaseException as fault:  # a forked process must not go on as its parent
            print(f"failed: {type(fault).__name__}: {fault}", flush=True)
            os._exit(1)
        os._exit(0)
    return child


if __name__ == "__main__":
    configure_logging(json_output=False)
    made = Settings.load({}, os.environ)
    if sys.argv[1] == "open":
        answer(made)
    else:
        kill(made, int(sys.argv[2]), int(sys.argv[3]))
