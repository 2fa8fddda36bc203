"""Fake engines for a process of their own, and functions that load them there."""

from __future__ import annotations

import os
import signal
import threading

from bei_core.engines.batch import Batch
from bei_core.errors import EngineUnavailableError
from bei_core.tasks import Rows
from tests.fakes import EngineFaultError, FakeEngine

KILLED, HANGING, ENDING, RAISING = 666, 667, 668, 669  # token ids, each a fault


class FragileEngine(FakeEngine):
    """A fake engine whose process ends, hangs or raises on some token ids."""

    def forward(self, batch: Batch) -> Rows:
        """As `FakeEngine.forward`, unless the batch holds one of the ids."""
        ids = set(batch.input_ids.tolist())
        if KILLED in ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGING in ids:
            threading.Event().wait()
        if ENDING in ids:
            raise SystemExit(3)
        if RAISING in ids:
            raise EngineFaultError("the runtime has failed")
        return super().forward(batch)

    def padding_share(self) -> float:
        """A share that is not 0."""
        return 0.25


def load_unless(folder: str) -> FragileEngine:
    """The engine; the process ends if there is a file `broken` in the folder, and hangs if there is a file `hangs`."""
    if os.path.exists(os.path.join(folder, "broken")):
        os._exit(7)
    with open(os.path.join(folder, "pids"), "a") as file:
        file.write(f"{os.getpid()}\n")
    if os.path.exists(os.path.join(folder, "hangs")):
        threading.Event().wait()
    return FragileEngine()


def unavailable() -> FragileEngine:
    """Raises EngineUnavailableError."""
    raise EngineUnavailableError("there is no such processor here")
