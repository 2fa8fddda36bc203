"""Fixtures of the tests of the HTTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.http.overloaded import MakeServed, servers


@pytest.fixture
async def make_served() -> AsyncIterator[MakeServed]:
    """Starts servers over fake engines, and closes them."""
    async with servers() as make:
        yield make
