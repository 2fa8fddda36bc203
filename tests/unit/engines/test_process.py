"""An engine in a process of its own: what ends the process fails one batch, and a new process takes over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bei_core.engines.batch import Batch
from bei_core.engines.process import PROGRAM, EngineProcess, EngineProcessError
from bei_core.errors import EngineUnavailableError, UnhealthyError
from tests.e2e.server import wait_until
from tests.fakes import SAFETY_S, rows_of, tokens_of
from tests.fragile import ENDING, HANGING, KILLED, RAISING, load_unless, unavailable

GOOD = [tokens_of(1, 2, 3), tokens_of(4)]
BATCH = Batch.pack(GOOD)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine that is ready."""
    engine = EngineProcess(partial(load_unless, str(tmp_path)))
    yield engine
    engine.close()
    assert not any(map(is_running, pids(tmp_path)))


def pids(folder: Path) -> list[int]:
    """The processes that loaded the engine, in order."""
    return list(map(int, (folder / "pids").read_text().split()))


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_rows_and_padding_are_those_of_the_engine(engine: EngineProcess, tmp_path: Path) -> None:
    rows = engine.forward(BATCH)
    assert np.array_equal(rows, rows_of(GOOD))
    rows *= 2  # the caller owns the array
    rows, tokens = engine.forward_tokens(BATCH)
    assert np.array_equal(rows, rows_of(GOOD))
    assert tokens[:, 0].tolist() == [1, 2, 3, 4]
    assert (engine.padding_share(), engine.info.name, engine.outage) == (0.25, "fake", None)
    assert os.getpid() not in pids(tmp_path)


def test_an_error_of_the_engine_is_raised_here_and_the_process_goes_on(engine: EngineProcess, tmp_path: Path) -> None:
    with pytest.raises(EngineProcessError, match=r"(?s)Traceback.*EngineFaultError: the runtime has failed"):
        engine.forward(Batch.pack([tokens_of(RAISING)]))
    assert np.array_equal(engine.forward(BATCH), rows_of(GOOD))
    assert len(pids(tmp_path)) == 1


@pytest.mark.parametrize("fault", [KILLED, ENDING])
def test_a_process_that_ends_in_a_batch_fails_it_and_is_started_again(
    engine: EngineProcess, tmp_path: Path, fault: int, caplog: pytest.LogCaptureFixture
) -> None:
    restarts = threading.Semaphore(0)
    engine.on_restart = restarts.release
    engine.name_model("minilm")
    with pytest.raises(UnhealthyError, match="has ended and is started again"):
        engine.forward(Batch.pack([tokens_of(fault)]))
    assert restarts.acquire(timeout=60)
    assert engine.outage is None
    assert np.array_equal(engine.forward(BATCH), rows_of(GOOD))
    assert len(set(pids(tmp_path))) == 2
    how = "by SIGKILL" if fault == KILLED else "with status 3"
    assert f"minilm: the process of the engine ended {how}; it is started again" in caplog.messages


def test_a_process_that_is_killed_while_idle_costs_no_batch(engine: EngineProcess, tmp_path: Path) -> None:
    restarts = threading.Semaphore(0)
    engine.on_restart = restarts.release
    os.kill(pids(tmp_path)[0], signal.SIGSEGV)
    assert restarts.acquire(timeout=60)
    assert np.array_equal(engine.forward(BATCH), rows_of(GOOD))


def test_kill_ends_a_batch_that_hangs(engine: EngineProcess) -> None:
    failed: list[UnhealthyError] = []

    def compute() -> None:
        with pytest.raises(UnhealthyError) as caught:
            engine.forward(Batch.pack([tokens_of(HANGING)]))
        failed.append(caught.value)

    engine.kill()  # nothing runs, so it kills nothing
    assert engine.outage is None
    thread = threading.Thread(target=compute)
    thread.start()
    while not failed:
        engine.kill()
        thread.join(0.01)
    thread.join()


def test_forward_fails_at_once_until_a_restart_succeeds(engine: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(UnhealthyError):
        engine.forward(Batch.pack([tokens_of(KILLED)]))
    with pytest.raises(UnhealthyError):
        engine.forward(BATCH)
    assert engine.outage is not None
    (tmp_path / "broken").unlink()
    wait_until(lambda: engine.outage is None)
    assert np.array_equal(engine.forward(BATCH), rows_of(GOOD))


@pytest.mark.parametrize("fault", [KILLED, HANGING])
def test_a_new_process_is_ready_only_after_its_warm_up(
    engine: EngineProcess,
    tmp_path: Path,
    fault: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("bei_core.engines.process._MAX_WARM_UP_S", 0.1)
    restarts: list[int] = []
    engine.on_restart = lambda: restarts.append(len(pids(tmp_path)))
    engine.warm_up = [BATCH, Batch.pack([tokens_of(fault)])]
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    wait_until(lambda: "is not started again yet" in caplog.text)
    with pytest.raises(UnhealthyError):
        engine.forward(BATCH)
    engine.warm_up = [BATCH]
    wait_until(lambda: bool(restarts))
    assert restarts == [3]
    assert np.array_equal(engine.forward(BATCH), rows_of(GOOD))


def test_a_new_process_that_hangs_while_it_loads_is_killed(
    engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was waited for without a limit: the server answered 503 until somebody started it again."""
    assert engine._max_load_s >= 120
    monkeypatch.setattr(engine, "_max_load_s", 0.1)
    (tmp_path / "hangs").touch()
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    wait_until(lambda: "is not started again yet" in caplog.text)
    assert "has not loaded it within" in caplog.text
    engine._max_load_s = SAFETY_S
    (tmp_path / "hangs").unlink()
    wait_until(lambda: engine.outage is None)
    assert np.array_equal(engine.forward(BATCH), rows_of(GOOD))


@pytest.mark.parametrize(
    ("load", "why"),
    [(unavailable, "there is no such processor here"), (partial(os._exit, 7), "ended with status 7 while it loaded")],
)
def test_a_first_start_that_fails_says_why(load: Callable[[], None], why: str) -> None:
    with pytest.raises(EngineUnavailableError, match=why):
        EngineProcess(load)  # type: ignore[arg-type]


def test_no_process_is_left_if_the_server_is_killed_in_a_batch_that_hangs(tmp_path: Path) -> None:
    program = (
        "import sys; from functools import partial; from bei_core.engines.process import EngineProcess;"
        "from bei_core.engines.batch import Batch; from tests.fakes import tokens_of; from tests.fragile import *;"
        "engine = EngineProcess(partial(load_unless, sys.argv[1])); print('ready', flush=True);"
        "engine.forward(Batch.pack([tokens_of(HANGING)]))"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], env=environ, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        server.kill()
    wait_until(lambda: not is_running(pids(tmp_path)[0]))


def test_the_process_has_the_texts_of_the_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ignores anything else in sys.path, and so programs put a Path there."""
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    engine = EngineProcess(partial(load_unless, str(tmp_path)))
    assert engine.info.name == "fake"
    engine.close()


def test_the_process_ignores_signals_to_all_processes_before_it_imports_anything(tmp_path: Path) -> None:
    module = tmp_path / "bei_core" / "engines" / "process.py"
    module.parent.mkdir(parents=True)
    for package in module.parents[:2]:
        (package / "__init__.py").touch()
    module.write_text(
        "import os, signal\n"
        "def main(fd):\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); print(fd)\n"
    )
    program = PROGRAM.format(path=[str(tmp_path), *filter(None, sys.path)], fd=7)
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"7\n"
