"""Fixtures and settings of all tests. No test needs the network or depends on how long something takes."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.errors import EngineUnavailableError
from bei_core.logs import TALKATIVE
from bei_core.metrics import Metrics
from bei_core.serving.runner import Runner
from tests.fakes import SAFETY_S, FakeEngine

if TYPE_CHECKING:
    from tests.e2e.server import Server

MINILM = Path(__file__).resolve().parents[1] / ".models" / "all-MiniLM-L6-v2"

# Tests that need packages of their own environments: make test-gpu-path, test-page, test-ray and test-sinks.
_NEEDS = {"gpu_path": "torch", "page": "playwright", "ray": "ray", "sinks": "faiss"}
collect_ignore = [folder for folder, package in _NEEDS.items() if importlib.util.find_spec(package) is None]

# The same examples in every run, and no deadline, because a busy machine would exceed it. To search for new failures:
# pytest --hypothesis-profile=search
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("suite"), derandomize=False, max_examples=500)
# `make test` tries the first of the examples that `make test-long` tries.
settings.register_profile("first", settings.get_profile("suite"), max_examples=25)
settings.load_profile("first")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Collects the tests without garbage collection, and leaves what they consist of out of every later one.

    Millions of objects of modules, tests and expected outputs live as long as the process: without this, each full
    garbage collection takes more than half a second to visit them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_certificates() -> Iterator[None]:
    """Clients read no certificates of authorities, which takes 50 ms each time: no test speaks TLS."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_default_certs", "load_verify_locations"):
            patch.setattr(ssl.SSLContext, name, lambda *args, **options: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_silent_end() -> Iterator[None]:
    """In the process of the tests, `os._exit` fails the test. It would end the process without a word."""
    tests, end = os.getpid(), os._exit

    def fail(status: int) -> NoReturn:
        if os.getpid() != tests:  # a process that was forked
            end(status)
        raise AssertionError(f"os._exit({status}) in the process of the tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", fail)
        yield


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Undoes what a test, or a command that it runs, sets on the loggers of the process."""
    loggers = [logging.getLogger(name) for name in (None, "bei_core", "bei_core.access", *TALKATIVE)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)  # an assignment would leave the cached answers of isEnabledFor


@pytest.fixture(scope="session")
def minilm() -> Checkpoint:
    """The checkpoint of all-MiniLM-L6-v2."""
    if not MINILM.is_dir():
        pytest.fail(f"{MINILM} is missing; run `make install`")
    return resolve(str(MINILM))


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """Servers that files share, one for each model, each started when a test first asks for it.

    They have their defaults, except that small models compute in float32, and that requests are accepted although the
    machine is busy with other work. A test that stops a server or measures its memory starts its own.
    """
    from tests.e2e.server import Server, cache_of  # most tests do not need it

    folder, cache, known = tmp_path_factory.mktemp("servers"), cache_of(tmp_path_factory), dict[Path, Server]()
    with ExitStack() as stack:

        def make(model: Path) -> Server:
            if model not in known:
                settings = {"model_id": model, "dtype": None if model == MINILM else "float32"}
                server = Server(folder / str(len(known)), cache, max_queue_wait_s=SAFETY_S, **settings)
                known[model] = stack.enter_context(server)
            return known[model]

        yield make


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Each dtype of the CPU engine; skips the test if the processor does not support it."""
    from bei_core.engines.openvino.engine import precision_for  # slow to import, and most tests do not need it

    dtype = str(request.param)
    try:
        precision_for(dtype)
    except EngineUnavailableError as fault:
        pytest.skip(str(fault))
    return dtype


@pytest.fixture
def make_runner() -> Iterator[Callable[..., Runner]]:
    """Starts runners with fake engines; closes them at the end of the test."""
    made: list[tuple[FakeEngine, Runner]] = []

    def make(
        engine: FakeEngine,
        *,
        metrics: Metrics | None = None,
        budget: int = 512,
        max_items: int | None = None,
        hang_s: float = 1e9,
        max_queue_wait_s: float = 1e9,
        kill_engine: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Runner:
        runner = Runner(
            engine,
            metrics or Metrics(),
            budget=budget,
            max_items=max_items,
            max_queue_wait_s=max_queue_wait_s,
            hang_s=hang_s,
            kill_engine=kill_engine,
            clock=clock,
        )
        made.append((engine, runner))
        runner.start()
        return runner

    yield make
    for engine, runner in made:
        engine.release()
        assert runner.close(SAFETY_S), "the engine thread did not end"
