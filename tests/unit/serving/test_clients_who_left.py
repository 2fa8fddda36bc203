"""The inputs of clients who left while they waited: they neither count nor stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bei_core.errors import OverloadedError
from bei_core.serving.queue import Item, Pending, Taken
from bei_core.serving.runner import Runner
from tests.fakes import Clock, FakeEngine, at_rest, ended, entered, submitted, tokens_of, tokens_of_length

MakeRunner = Callable[..., Runner]
BUDGET = 512


@dataclass(eq=False)
class Caller:
    abandoned: bool = False


@pytest.mark.parametrize("size", [1, 3])
async def test_the_items_of_callers_who_left_count_for_nothing_while_a_batch_runs(
    make_runner: MakeRunner, size: int
) -> None:
    """Others were refused until the batch ended."""
    engine = FakeEngine(max_seq_len=4)
    runner = make_runner(engine, budget=4, max_queue_wait_s=13.0, clock=Clock())
    runner.admission.rate.add(4, 3.0)
    inputs = [tokens_of(1, 2, 3, 4)] * size
    with engine.held():
        tasks = submitted(runner, [tokens_of(9)])
        await entered(engine)
        leavers = submitted(runner, *([inputs] * 3))
        await at_rest()
        with pytest.raises(OverloadedError):
            await runner.submit([tokens_of(5)])
        for leaver in leavers:
            leaver.cancel()
        await ended(*leavers)
        assert (runner.num_items, runner.num_tokens) == (0, 0)
        tasks += submitted(runner, [tokens_of(5)])
        await at_rest()
        assert not tasks[1].done()
    await ended(*tasks)
    assert engine.seen == [[9], [5]]


def test_the_items_of_clients_who_left_do_not_count() -> None:
    pending: Pending[Caller] = Pending(BUDGET)
    owner, left = Caller(), Caller()
    for sizes in ([128] * 12, [64]):
        queued = pending.put([Item(tokens_of_length(size), left, index, 0.0) for index, size in enumerate(sizes)], 0.0)
        if len(sizes) > 1:
            assert len(pending.take(BUDGET, 0.0).items) == 4, "and the next four join the line"
        pending.leave(queued)
        assert (pending.num_items, pending.num_tokens, pending.num_tokens_in_line) == (0, 0, 0)
        assert pending.num_tokens_ahead(9.0) == 0
    left.abandoned = True
    last = Item(tokens_of_length(100), owner, 0, 0.0)
    pending.put([last], 0.0)
    assert pending.num_tokens == pending.num_tokens_ahead(9.0) == 100
    assert pending.take(BUDGET, 0.0) == Taken([last], [])
    assert (pending.num_items, pending.num_tokens, pending.num_tokens_in_line) == (0, 0, 0)


def test_the_items_of_clients_who_left_do_not_fill_the_memory() -> None:
    pending: Pending[Caller] = Pending(BUDGET)
    owner, left = Caller(), Caller(abandoned=True)
    wanted = [Item(tokens_of_length(100), owner, index, 0.0) for index in range(3)]
    for index in range(1000):
        queued = pending.put([Item(tokens_of_length(1 + index % 400), left, 0, 0.0)] * (1 + index % 3), 0.0)
        if index % 400 == 0:
            pending.put([wanted[index // 400]], 0.0)
        pending.leave(queued)
    assert pending.num_items == 3
    assert len(pending.drain()) < 200


def test_nothing_stays_when_the_last_client_has_left() -> None:
    """No batch is taken from then on, which would remove the items."""
    pending: Pending[Caller] = Pending(BUDGET)
    both = [pending.put([Item(tokens_of_length(100), Caller(), 0, 0.0)] * size, 0.0) for size in (1, 20)]
    for queued in both:
        pending.leave(queued)
    assert pending.drain() == []
