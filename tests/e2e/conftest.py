"""The server that the tests here share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.server import Server, cache_of, log_shown
from tests.fakes import SAFETY_S


@pytest.fixture(scope="session")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, cache = tmp_path_factory.mktemp("bei") / "server", cache_of(tmp_path_factory)
    with Server(folder, cache, max_queue_wait_s=SAFETY_S) as server:
        yield server


@pytest.fixture
def bei(_running: Server) -> Iterator[Server]:
    """`bei serve` with its defaults, except that it accepts requests although the machine is busy with other work."""
    with log_shown(_running):
        yield _running


@pytest.fixture(scope="session")
def _http(_running: Server) -> Iterator[httpx.Client]:
    with _running.client() as client:
        yield client


@pytest.fixture
def http(bei: Server, _http: httpx.Client) -> httpx.Client:
    """A client of it, which keeps its connection."""
    return _http
