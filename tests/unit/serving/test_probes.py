"""Health checks whose probe fails: 503, unless the engine gives rows to others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from bei_core.config.settings import Settings
from bei_core.http.app import App
from bei_core.serving.service import Service
from tests.fakes import SAFETY_S, FakeEngine, at_rest, entered
from tests.unit.serving.test_service import embed, opened

PROBE = 0  # the token id of a probe


@contextmanager
def started(engine: FakeEngine) -> Iterator[Service]:
    """A service past its warm-up, whose engine has not answered a request."""
    service = Service(opened(engine, None), Settings.load({"model_id": "owner/name"}, {}))
    service.start()
    while engine.entered.acquire(blocking=False):
        pass
    try:
        yield service
    finally:
        service.close(SAFETY_S)


async def health_of(service: Service) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(App(service)), base_url="http://bei") as client:
        return await client.get("/health")


@pytest.fixture(autouse=True)
def waits_for_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health checks wait for the answer to a probe, however slow the machine is."""
    monkeypatch.setattr("bei_core.serving.service._PROBE_WAIT_S", SAFETY_S)


async def test_an_engine_that_fails_on_the_probe_is_unhealthy_until_it_answers_one() -> None:
    engine = FakeEngine(max_seq_len=48)
    with started(engine) as service:
        engine.num_failures = 1
        replies = [await health_of(service) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [503, 200]
    assert "the engine fails on everything: the engine failed on this input" in replies[0].json()["error"]


async def test_an_engine_that_gives_nan_for_the_probe_is_unhealthy() -> None:
    engine = FakeEngine(max_seq_len=48)
    with started(engine) as service:
        engine.nan_on = frozenset([PROBE])
        reply = await health_of(service)
    assert (reply.status_code, "NaN or infinity" in reply.text) == (503, True)


async def test_a_probe_that_fails_while_others_get_rows_proves_nothing() -> None:
    engine = FakeEngine(max_seq_len=48)
    with started(engine) as service:
        engine.raises_on = frozenset([PROBE])
        with engine.held():
            first = asyncio.create_task(service.run(embed("first")))
            await entered(engine)
            checking = asyncio.create_task(health_of(service))
            await at_rest()
        await first
        assert (await checking).status_code == 200
