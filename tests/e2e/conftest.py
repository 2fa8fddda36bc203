"""The server of all-MiniLM-L6-v2 that the tests here share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import MINILM
from tests.e2e.server import Server, no_bugs


@pytest.fixture(scope="session")
def _running(server_of: Callable[[Path], Server]) -> Server:
    return server_of(MINILM)


@pytest.fixture
def bei(_running: Server) -> Iterator[Server]:
    """`bei serve` with its defaults, except that it accepts requests although the machine is busy with other work.

    The test fails if the server logs an error meanwhile.
    """
    with no_bugs(_running):
        yield _running


@pytest.fixture(scope="session")
def _http(_running: Server) -> Iterator[httpx.Client]:
    with _running.client() as client:
        yield client


@pytest.fixture
def http(bei: Server, _http: httpx.Client) -> httpx.Client:
    """A client of it, which keeps its connection."""
    return _http
