"""Models whose texts may be longer than a batch: the batches of the service, and how long others wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bei_core.config.settings import Settings
from bei_core.serving.service import Result, Service
from tests.fakes import SAFETY_S, FakeEngine, at_rest, ended, entered
from tests.unit.serving.test_admission import BUDGET, FIXED_S, TOKEN_S, Request, Simulation
from tests.unit.serving.test_service import embed, opened


@pytest.mark.parametrize(("wanted", "flags"), [(16, {}), (48, {"max_batch_tokens": 16})], ids=["engine", "setting"])
async def test_a_batch_of_a_model_with_a_long_context_has_no_more_tokens_than_wanted(
    wanted: int, flags: dict[str, object]
) -> None:
    engine = FakeEngine(max_seq_len=48)
    engine.info = replace(engine.info, batch_tokens=wanted)
    service = Service(opened(engine, None), Settings.load(flags, {}))
    service.start()
    engine.batches.clear()
    while engine.entered.acquire(blocking=False):
        pass
    with engine.held():
        tasks = [asyncio.create_task(service.run(embed("first")))]
        await entered(engine)
        tasks += [asyncio.create_task(service.run(embed([number] * 8))) for number in range(5, 14)]
        tasks.append(asyncio.create_task(service.run(embed([1] * 48))))
        await at_rest()
    assert all(isinstance(reply, Result) for reply in await ended(*tasks))
    longest = 48 if wanted == 16 else 16  # of a text, which is truncated to `max_batch_tokens`
    sizes = [[len(ids) for ids in batch] for batch in engine.batches[1:]]
    assert sorted(sizes, key=sum) == [[8], [8, 8], [8, 8], [8, 8], [8, 8], [longest]]
    service.close(SAFETY_S)


def test_a_small_request_waits_for_one_text_of_each_large_request_of_texts_longer_than_a_batch() -> None:
    simulation = Simulation(max_wait_s=1e9)
    for _ in range(2):
        assert simulation.offer(Request(0.0), *[8 * BUDGET] * 64)
    small = [Request(10.0 + second) for second in range(60)]
    for request in small:
        assert simulation.offer(request, 20)
    simulation.drain()
    text_s = FIXED_S + 8 * BUDGET * TOKEN_S
    assert max(request.ended - request.arrived for request in small) <= 4 * text_s


def test_a_text_longer_than_a_batch_waits_once_before_its_deadline() -> None:
    simulation, batch_s = Simulation(), FIXED_S + BUDGET * TOKEN_S
    for _ in range(8):
        simulation.offer(Request(0.0), BUDGET)
    text = Request(0.0, deadline=18 * batch_s)
    assert simulation.offer(text, 8 * BUDGET)
    simulation.drain()
    assert text.ended <= 16 * batch_s
