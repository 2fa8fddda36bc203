"""The sizes of batches: of models whose texts may be longer, under a long line, and how long others wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bei_core.config.settings import Settings
from bei_core.serving.queue import SHORTEST_CLASS
from bei_core.serving.service import Result, Service
from tests.fakes import SAFETY_S, FakeEngine, at_rest, ended, entered
from tests.unit.serving.test_admission import (
    BUDGET,
    CAPACITY,
    FIXED_S,
    LENGTH,
    TOKEN_S,
    Request,
    Simulation,
    poisson,
)
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


def test_batches_are_larger_under_a_long_line_and_a_quarter_of_it_at_most() -> None:
    simulation = Simulation(most=4 * BUDGET)
    simulation.offer(Request(0.0), LENGTH)
    for _ in range(24 * BUDGET // LENGTH):
        simulation.offer(Request(0.0), LENGTH)
    lines, sizes = list[int](), list[int]()
    while simulation.pending.num_items:
        lines.append(simulation.pending.num_tokens_in_line)
        simulation.advance(simulation.now + simulation.admission.expected_s(1))
        while simulation.pending.num_tokens_in_line == lines[-1]:
            simulation.advance(simulation.now + FIXED_S)
        sizes.append(simulation.admission.running.num_tokens)
    wanted = [min(4 * BUDGET, max(BUDGET, line / 4)) for line in lines]
    assert sizes[:-1] == [pytest.approx(each, abs=LENGTH) for each in wanted[:-1]]
    assert max(sizes) > 3.9 * BUDGET


def test_a_batch_takes_a_third_of_the_longest_wait_and_grows_again_when_a_slow_time_is_over() -> None:
    simulation = Simulation(max_wait_s=0.25)
    budgets = []
    for token_s in (TOKEN_S, 8 * TOKEN_S, TOKEN_S):
        simulation.token_s = token_s
        start = simulation.now
        for arrived in poisson(3 * CAPACITY, 3.0):
            simulation.offer(Request(start + arrived), LENGTH)
        budgets.append(simulation.admission.budget)
    assert budgets[0] == pytest.approx(0.25 / 3 / TOKEN_S, rel=0.1)
    assert budgets[1] == SHORTEST_CLASS, "a third would be fewer tokens"
    assert budgets[2] == pytest.approx(budgets[0], rel=0.1)
