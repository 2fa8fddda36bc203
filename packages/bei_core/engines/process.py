"""An engine in a process of its own: a crash or a hang costs one batch, not the server.

The server's end is EngineProcess. It sends a batch through a pipe and gets the rows back, both pickled: the process
runs the same program with the same rights, so neither end distrusts the other.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import math
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bei_core.engines.base import Engine, EngineInfo
from bei_core.engines.batch import Batch
from bei_core.errors import EngineUnavailableError, StartError, UnhealthyError
from bei_core.logs import ModelLog

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[np.float32]
Load: TypeAlias = Callable[[], Engine]
Run: TypeAlias = Callable[[Connection], object]

# The program of the process. It has the server's sys.path, and no folder of its own before it. It ignores SIGINT and
# SIGTERM from the start: a supervisor may send them to all processes, and the server answers what it has accepted.
PROGRAM = (
    "import sys; sys.path[:] = {path!r}; import signal;"
    " signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " from bei_core.engines.process import main; main({fd})"
)

# A process that ended within _STABLE_S seconds of its start is started again after 0, 1, 3, 7, ... seconds.
_STABLE_S = 60.0
_MAX_WAIT_S = 30.0

_END_S = 1.0  # how long a process may take to end after it has closed its pipe

_MAX_WARM_UP_S = 60.0  # a process that takes longer to warm up is killed

# A process after the first one is killed if it has not loaded the engine after _LOAD_FACTOR times the seconds that the
# first one took, and after _MIN_LOAD_S seconds. The first one may take any time: nothing says how large the model is.
_LOAD_FACTOR = 10.0
_MIN_LOAD_S = 120.0

_OUTAGE = "the process of the engine has ended and is started again"

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class EngineProcessError(Exception):
    """The engine raised an error in its process, which goes on; the text is the traceback."""


def start_process(run: Run) -> tuple[subprocess.Popen[bytes], Connection]:
    """Starts a process that calls `run`, which must be picklable, with its end of a pipe; returns it and our end.

    Linux kills it when the thread that called this function ends. Raises EngineUnavailableError if the system starts no
    process.
    """
    ours, theirs = Pipe()
    path = [folder for folder in sys.path if isinstance(folder, str)]  # Python ignores others, such as a Path
    program = PROGRAM.format(path=path, fd=theirs.fileno())
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
        )
    except OSError as fault:
        raise EngineUnavailableError(f"the process of the engine cannot be started: {fault.strerror}") from fault
    finally:
        theirs.close()
    with suppress(ConnectionError):  # the process has ended already, which the next `recv` reports
        ours.send(run)
    return process, ours


class _Child:
    """One process. `is_ready` is True from the warm-up of its engine until its end is noticed."""

    def __init__(self, load: Load) -> None:
        """Raises EngineUnavailableError if the system starts no process."""
        self.is_ready = False
        self.process, self.pipe = start_process(partial(_serve, load))

    def wait_loaded(self, limit_s: float) -> EngineInfo:
        """Waits until the engine is loaded. Raises the StartError of the load, or EngineUnavailableError.

        Kills the process after `limit_s` seconds.
        """
        try:
            if not self.pipe.poll(None if limit_s == math.inf else limit_s):
                log.error("the process of the engine has not loaded it within %.0f s; it is killed", limit_s)
                self.process.kill()
            reply = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise EngineUnavailableError(
                f"the process of the engine ended {self.how()} while it loaded the engine; see the log"
            ) from None
        if isinstance(reply, StartError):
            self.process.wait()
            raise reply
        return reply  # type: ignore[no-any-return]

    def warm_up(self, batches: Sequence[Batch]) -> None:
        """Computes the batches, then counts as ready. Raises UnhealthyError if the process ends or hangs."""
        timer = threading.Timer(_MAX_WARM_UP_S, self.process.kill)
        timer.start()
        try:
            for batch in batches:
                self.ask("forward", batch)
        finally:
            timer.cancel()
        self.is_ready = True

    def ask(self, method: str, batch: Batch) -> Any:  # noqa: ANN401
        """Returns the reply of the process. Raises UnhealthyError if it ends, also by `kill`."""
        try:
            self.pipe.send((method, batch))
            return self.pipe.recv()
        except Exception as fault:  # also MemoryError, after which a part of the reply is left in the pipe
            self.is_ready = False
            with suppress(subprocess.TimeoutExpired):  # if it is ending, the log gets its own status
                self.process.wait(_END_S)
            self.process.kill()
            raise UnhealthyError(_OUTAGE) from fault

    def how(self) -> str:
        """Waits for the end of the process and returns how it ended, such as `by SIGKILL`."""
        status = self.process.wait()
        self.is_ready = False
        return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"


class EngineProcess:
    """An engine in a process. While no process is ready, `forward` raises UnhealthyError at once.

    A new process computes the batches of `warm_up` before it is ready. `on_restart` is called after each restart.
    """

    def __init__(self, load: Load) -> None:
        """Starts the process and waits until it has loaded the engine. `load` must be picklable.

        Raises the StartError of `load`, or EngineUnavailableError if the process ends.
        """
        self.on_restart: Callable[[], None] = lambda: None
        self.warm_up: Sequence[Batch] = ()  # set after the start, whose warm-up is the caller's
        self._log: logging.Logger | ModelLog = log
        self._load = load
        self._child: _Child | None = None
        self._computing: _Child | None = None  # the process that computes a batch now
        self._padding_share, self._num_shared_tokens = 0.0, 0
        self._max_load_s = math.inf  # of the first process; then it is known how long a load takes
        self._closing = threading.Event()
        first: Future[EngineInfo] = Future()
        self._supervisor = threading.Thread(
            target=self._supervise, args=(first,), name="bei-engine-process", daemon=True
        )
        self._supervisor.start()
        self.info = first.result()

    def name_model(self, name: str) -> None:
        """Makes each line of the log begin with the name of the model, which is not known at the start."""
        self._log = ModelLog(log, name)

    def forward(self, batch: Batch) -> Array:
        """f32[B, D]; see `Engine.forward`. Raises UnhealthyError if the process ends."""
        rows: Array = self._ask("forward", batch)
        return rows

    def forward_tokens(self, batch: Batch) -> tuple[Array, Array]:
        """f32[B, D] and f32[T, E]; see `Engine.forward_tokens`. Raises UnhealthyError if the process ends."""
        rows, tokens = self._ask("forward_tokens", batch)
        return rows, tokens

    def padding_share(self) -> float:
        """See `Engine.padding_share`."""
        return self._padding_share

    def num_shared_tokens(self) -> int:
        """See `Engine.num_shared_tokens`."""
        return self._num_shared_tokens

    @property
    def outage(self) -> str | None:
        """Why the engine computes nothing now; None if it is ready."""
        return None if self._child is not None and self._child.is_ready else _OUTAGE

    def kill(self) -> None:
        """Kills the process if it computes a batch: `forward` raises UnhealthyError, and a new process is started."""
        if (child := self._computing) is not None:
            child.process.kill()

    def close(self) -> None:
        """Ends the process."""
        self._closing.set()
        if (child := self._child) is not None:
            child.process.kill()
        self._supervisor.join()

    def _ask(self, method: str, batch: Batch) -> Any:  # noqa: ANN401
        child = self._child
        if child is None or not child.is_ready:
            raise UnhealthyError(_OUTAGE)
        self._computing = child
        try:
            reply = child.ask(method, batch)
        finally:
            self._computing = None
        if isinstance(reply, str):
            raise EngineProcessError(reply)
        arrays, self._padding_share, self._num_shared_tokens = reply
        return arrays

    def _supervise(self, first: Future[EngineInfo]) -> None:
        """Keeps a process running until `close`; `first` gets what the first one says.

        All processes are started by this one thread, because Linux ends a process by PR_SET_PDEATHSIG at the end of
        the thread that started it.
        """
        wait_s, num_ends = 0.0, 0
        while not self._closing.wait(wait_s):
            began = time.monotonic()
            try:
                self._run_once(first)
            except Exception as error:
                if not first.done():
                    return first.set_exception(error)
                self._log.error("the engine is not started again yet: %s", error)
            if time.monotonic() - began > _STABLE_S:
                num_ends = 0
            wait_s, num_ends = min(_MAX_WAIT_S, 2.0 ** min(num_ends, 10) - 1), num_ends + 1
        return None

    def _run_once(self, first: Future[EngineInfo]) -> None:
        """Starts a process and returns when it has ended. Raises StartError if it does not become ready."""
        began = time.monotonic()
        child = self._child = _Child(self._load)
        if self._closing.is_set():
            child.process.kill()
        info = child.wait_loaded(self._max_load_s)
        if not first.done():
            self._max_load_s = max(_MIN_LOAD_S, _LOAD_FACTOR * (time.monotonic() - began))
        child.warm_up(self.warm_up)
        if first.done():
            self._log.info("the engine is ready again, after %.1f s", time.monotonic() - began)
            self.on_restart()
        else:
            first.set_result(info)
        how = child.how()
        if not self._closing.is_set():
            self._log.error("the process of the engine ended %s; it is started again", how)


def main(fd: int) -> None:
    """The program of the process: calls the function that the server sends, until the server closes the pipe or ends.

    Linux kills the process when the server ends, also if it hangs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.enable()
    pipe = Connection(fd)
    with suppress(EOFError, ConnectionError):
        pipe.recv()(pipe)


def _serve(load: Load, pipe: Connection) -> None:
    """Loads the engine, then computes batches."""
    try:
        engine = load()
    except StartError as error:
        return pipe.send(error)
    pipe.send(replace(engine.info, num_callers=1))  # there is one pipe
    while True:
        pipe.send(_reply(engine, *pipe.recv()))


def _reply(engine: Engine, method: str, batch: Batch) -> object:
    """The arrays of a batch and what the engine says of it; the traceback as a text if the engine raises an error."""
    try:
        return getattr(engine, method)(batch), engine.padding_share(), engine.num_shared_tokens()
    except Exception:
        return traceback.format_exc()
