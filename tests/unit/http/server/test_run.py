"""What `serve` sets in its process."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from bei_core.config.settings import Settings
from bei_core.http.server import run
from bei_core.http.server.sockets import Sockets
from tests.fakes import SAFETY_S


def test_a_thread_that_runs_python_code_leaves_the_lock_to_the_event_loop_within_2500_microseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Python's 5 ms, the event loop stood still for 114 ms while the memory of a large body was counted."""
    intervals, before, threshold = list[float](), sys.getswitchinterval(), gc.get_threshold()

    def watched(main: Coroutine[Any, Any, None], **_: object) -> None:
        main.close()
        intervals.append(sys.getswitchinterval())

    app = SimpleNamespace(service=SimpleNamespace(settings=Settings(model_id="a")))
    monkeypatch.setattr(run, "make_app", lambda *_, **__: (app, None))
    monkeypatch.setattr(uvloop, "run", watched)
    try:
        run.serve([], Sockets())
    finally:
        sys.setswitchinterval(before)
        gc.set_threshold(*threshold)
        gc.unfreeze()
    assert intervals == [pytest.approx(0.0025)]


SIGNALLED = """
import asyncio, os, signal, threading
from types import SimpleNamespace
from bei_core.config.settings import Settings
from bei_core.http.server import run
from bei_core.http.server.sockets import Sockets

def refuse(thread):
    raise RuntimeError("can't start new thread")

async def main():
    app = SimpleNamespace(service=SimpleNamespace(settings=Settings(model_id="a", drain_timeout_s=1e6)))
    server = run._Server(app, app, Sockets())
    stop = server._end_on_signals()
    pool = run._started_pool()
    threading.Thread.start = refuse
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    print(pool.submit(len, "it runs").result(), 0 < server.time_left() <= 1e6)
    pool.shutdown()

asyncio.run(main())
"""


def test_a_signal_is_obeyed_where_no_thread_can_start() -> None:
    """Under a limit of threads or processes, the signal was lost, and the server went on until it was killed."""
    program = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(program, capture_output=True, text=True, timeout=SAFETY_S)
    assert (done.stdout, done.returncode) == ("7 True\n", 0), done.stderr


CLOSED = """
import threading, uvloop
from bei_core.http.server import run

def refuse(thread):
    raise RuntimeError("can't start new thread")

async def main():
    loop = run.asyncio.get_running_loop()
    loop.set_default_executor(run._started_pool())
    threading.Thread.start = refuse
    return await loop.run_in_executor(None, len, "it runs")

print(uvloop.run(main(), loop_factory=run._Loop))
"""


def test_the_event_loop_is_closed_where_no_thread_can_start() -> None:
    """Under a limit of threads or processes, the drain ended with a traceback and status 1."""
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, text=True, timeout=SAFETY_S)
    assert (done.stdout, done.stderr, done.returncode) == ("7\n", "", 0)
