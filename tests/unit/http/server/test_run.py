"""What `serve` sets in its process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from bei_core.config.settings import Settings
from bei_core.http.server import run
from bei_core.http.server.sockets import Sockets


def test_a_thread_that_runs_python_code_leaves_the_lock_to_the_event_loop_within_2500_microseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Python's 5 ms, the event loop stood still for 114 ms while the memory of a large body was counted."""
    intervals, before, threshold = list[float](), sys.getswitchinterval(), gc.get_threshold()

    def watched(main: Coroutine[Any, Any, None]) -> None:
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
