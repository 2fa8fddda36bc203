"""The runner with a scripted engine: rows, batches and the end of each request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from bei_core.engines.batch import Batch
from bei_core.errors import DeadlineExceededError, EngineError, OverloadedError, UnhealthyError
from bei_core.metrics import Metrics
from bei_core.serving.runner import Runner, Ticket
from bei_core.tasks import Rows, Tokens
from tests.fakes import (
    SAFETY_S,
    Clock,
    FakeEngine,
    at_rest,
    ended,
    entered,
    requests,
    rows_of,
    submitted,
    tokens_of,
    tokens_of_length,
)

MakeRunner = Callable[..., Runner]


# --- Rows


async def test_rows_come_back_in_the_order_of_the_request(make_runner: MakeRunner) -> None:
    runner = make_runner(FakeEngine())
    tokens = [tokens_of(index) for index in (5, 3, 9, 1)]
    assert np.array_equal((await runner.submit(tokens)).rows, rows_of(tokens))


async def test_no_row_is_mixed_up_among_many_concurrent_requests(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=64)
    runner = make_runner(engine, budget=128)
    inputs = requests(200)
    results = await ended(*submitted(runner, *inputs))
    for tokens, ticket in zip(inputs, results, strict=True):
        assert isinstance(ticket, Ticket)
        assert np.array_equal(ticket.rows, rows_of(tokens))
    assert sorted(engine.seen) == sorted(item.ids.tolist() for tokens in inputs for item in tokens)  # each run once
    assert max(sum(map(len, batch)) for batch in engine.batches) <= 128


async def test_equal_inputs_of_a_batch_are_computed_once(make_runner: MakeRunner) -> None:
    engine, metrics = FakeEngine(), Metrics()
    runner = make_runner(engine, metrics=metrics)
    tokens = [tokens_of(3, 4), tokens_of(5), tokens_of(3, 4), tokens_of(3), tokens_of(5)]
    assert np.array_equal((await runner.submit(tokens)).rows, rows_of(tokens))
    assert sorted(engine.seen) == [[3], [3, 4], [5]]
    assert b"bei_deduplicated_total 2.0" in metrics.render()


async def test_inputs_that_differ_in_types_or_skip_alone_are_computed_apart(make_runner: MakeRunner) -> None:
    engine = FakeEngine()
    ids = np.array([3, 4], np.int32)
    inputs = [Tokens(ids, ids * 0), Tokens(ids, ids * 0 + 1), Tokens(ids, ids * 0, skip=1)]
    await make_runner(engine).submit(inputs)
    assert engine.seen == [[3, 4]] * 3


async def test_a_request_larger_than_a_batch_comes_back_whole(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=16)
    runner = make_runner(engine, budget=16)
    tokens = [tokens_of(index, index, index) for index in range(50)]
    assert np.array_equal((await runner.submit(tokens)).rows, rows_of(tokens))
    assert len(engine.batches) == 10


async def test_requests_of_two_event_loops_in_two_threads_are_served_together(make_runner: MakeRunner) -> None:
    runner = make_runner(FakeEngine(max_seq_len=64), budget=64)

    def client(seed: int) -> list[bool]:
        async def run() -> list[bool]:
            inputs = requests(50, seed)
            results = await ended(*submitted(runner, *inputs))
            return [
                isinstance(ticket, Ticket) and np.array_equal(ticket.rows, rows_of(tokens))
                for tokens, ticket in zip(inputs, results, strict=True)
            ]

        return asyncio.run(run())

    right = await asyncio.gather(*(asyncio.to_thread(client, seed) for seed in (1, 2)))
    assert right == [[True] * 50] * 2


async def test_a_result_is_given_on_the_event_loop_that_waits_for_it(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    runner = make_runner(engine)
    resolve, at_home = Ticket.resolve, []

    def watched(ticket: Ticket) -> None:
        at_home.append(ticket.future.get_loop() is asyncio.get_running_loop())
        resolve(ticket)

    monkeypatch.setattr(Ticket, "resolve", watched)
    with engine.held():
        tasks = submitted(runner, [tokens_of(0)])
        await entered(engine)
        elsewhere = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(runner.submit([tokens_of(1)]))))
        tasks += submitted(runner, [tokens_of(2)])
        while runner.num_items < 2:  # which then share a batch
            await asyncio.sleep(0.001)
    await ended(*tasks, elsewhere)
    assert [len(batch) for batch in engine.batches] == [1, 2]
    assert at_home == [True] * 3


# --- Batches


async def test_an_idle_engine_starts_at_once(make_runner: MakeRunner) -> None:
    """The clock stands still, so a runner that waits for a batch to grow would never start."""
    engine = FakeEngine()
    runner = make_runner(engine, clock=Clock())
    await asyncio.wait_for(runner.submit([tokens_of(1)]), SAFETY_S)
    assert engine.batches == [[[1]]]


async def test_what_comes_while_the_engine_is_busy_shares_the_next_batch(make_runner: MakeRunner) -> None:
    engine = FakeEngine()
    runner = make_runner(engine)
    with engine.held():
        tasks = submitted(runner, [tokens_of(0)])
        await entered(engine)
        tasks += submitted(runner, *([tokens_of(index)] for index in range(1, 21)))
        await at_rest()
        assert (runner.num_items, runner.num_tokens) == (20, 20)
    await ended(*tasks)
    assert engine.batches == [[[0]], [[index] for index in range(1, 21)]]
    assert (runner.num_items, runner.num_tokens) == (0, 0)


async def test_few_requests_of_a_batch_are_answered_in_one_turn_of_the_event_loop(make_runner: MakeRunner) -> None:
    engine, turn, ends = FakeEngine(), 0, list[int]()
    runner = make_runner(engine)

    async def request(index: int) -> None:
        await runner.submit([tokens_of(index)])
        ends.append(turn)

    with engine.held():
        tasks = submitted(runner, [tokens_of(0)])
        await entered(engine)
        others = [asyncio.ensure_future(request(index)) for index in range(1, 61)]
        await at_rest()
    while len(ends) < 60:
        turn += 1
        await asyncio.sleep(0)
    assert max(Counter(ends).values()) < 30
    await asyncio.gather(*tasks, *others)


async def test_a_batch_has_at_most_max_items(make_runner: MakeRunner) -> None:
    engine = FakeEngine()
    runner = make_runner(engine, max_items=3)
    await runner.submit([tokens_of(index) for index in range(10)])
    assert [len(batch) for batch in engine.batches] == [3, 3, 3, 1]


async def test_a_text_longer_than_the_budget_runs_alone_and_others_keep_the_budget(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=100)
    runner = make_runner(engine, budget=10)
    tokens = [tokens_of_length(100), *(tokens_of_length(5, index) for index in range(4))]
    assert np.array_equal((await runner.submit(tokens)).rows, rows_of(tokens))
    assert sorted([len(ids) for ids in batch] for batch in engine.batches) == [[5, 5], [5, 5], [100]]


@pytest.mark.parametrize(("seconds", "first"), [(0.9, 2), (1.1, 1)])
async def test_a_high_priority_is_a_head_start_of_a_second(make_runner: MakeRunner, seconds: float, first: int) -> None:
    engine, clock = FakeEngine(max_seq_len=1), Clock()
    runner = make_runner(engine, budget=1, clock=clock)
    with engine.held():
        tasks = submitted(runner, [tokens_of(0)])
        await entered(engine)
        tasks += submitted(runner, [tokens_of(1)])
        await at_rest()
        clock.now += seconds
        tasks.append(asyncio.create_task(runner.submit([tokens_of(2)], priority="high")))
        await at_rest()
    await ended(*tasks)
    assert engine.seen == [[0], [first], [3 - first]]


async def test_the_wait_and_the_work_are_timed(make_runner: MakeRunner) -> None:
    engine, clock = FakeEngine(), Clock()
    runner = make_runner(engine, clock=clock)
    with engine.held():
        first = submitted(runner, [tokens_of(1)])[0]
        await entered(engine)
        second = submitted(runner, [tokens_of(2)])[0]
        await at_rest()
        clock.now += 3.0
    await ended(first, second)
    assert (first.result().queue_s, first.result().inference_s) == (0.0, 3.0)
    assert (second.result().queue_s, second.result().inference_s) == (3.0, 0.0)


async def test_the_engine_is_called_by_one_thread_only(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(max_seq_len=4)
    threads: set[str] = set()
    forward = engine.forward

    def watched(batch: Batch) -> Rows:
        threads.add(threading.current_thread().name)
        return forward(batch)

    monkeypatch.setattr(engine, "forward", watched)
    runner = make_runner(engine, budget=4)
    await ended(*submitted(runner, *requests(10)))
    assert threads == {"bei-engine"}


# --- Deadlines and callers who leave


async def test_an_item_past_its_deadline_fails_and_is_not_run(make_runner: MakeRunner) -> None:
    engine, clock = FakeEngine(), Clock()
    runner = make_runner(engine, clock=clock)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)])
        await entered(engine)
        tasks += submitted(runner, [tokens_of(2)], deadline=clock.now + 1)
        tasks += submitted(runner, [tokens_of(3)], deadline=clock.now + 5)
        await at_rest()
        clock.now += 1
    results = await ended(*tasks)
    assert isinstance(results[1], DeadlineExceededError)
    assert engine.seen == [[1], [3]]


async def test_a_deadline_ends_the_wait_while_the_engine_is_busy(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=1)
    runner = make_runner(engine, budget=1)
    with engine.held():
        running, *waiting = (
            *submitted(runner, [tokens_of(1)], deadline=time.monotonic() + 0.05),
            *submitted(runner, [tokens_of(2), tokens_of(3)], deadline=time.monotonic() + 0.05),
        )
        results = await ended(running, *waiting)  # though no batch comes back
        assert [type(result) for result in results] == [DeadlineExceededError] * 2
    await runner.submit([tokens_of(4)])
    assert [ids for ids in engine.seen if ids in ([2], [3])] == []


async def test_a_deadline_that_is_kept_leaves_nothing_behind(make_runner: MakeRunner) -> None:
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    runner = make_runner(FakeEngine())
    (task,) = submitted(runner, [tokens_of(1)], deadline=time.monotonic() + SAFETY_S)
    assert isinstance((await ended(task))[0], Ticket)
    assert not faults


async def test_a_small_request_passes_a_large_one_that_runs(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=4)
    runner = make_runner(engine, budget=4)
    with engine.held():
        large = submitted(runner, [tokens_of(1, index) for index in range(100)])
        await entered(engine)
        small = submitted(runner, [tokens_of(2)])
        await at_rest()
    await ended(*large, *small)
    assert [2] in engine.batches[1] + engine.batches[2]


async def test_what_would_wait_too_long_is_refused_and_a_probe_is_not(make_runner: MakeRunner) -> None:
    engine, clock = FakeEngine(max_seq_len=4), Clock()
    runner = make_runner(engine, budget=4, max_queue_wait_s=13.0, clock=clock)
    runner.admission.rate.add(4, 3.0)
    with engine.held():
        tasks = submitted(runner, *([tokens_of(1, 2, 3, 4)] for _ in range(3)))
        await entered(engine)
        await at_rest()
        with pytest.raises(OverloadedError) as refusal:
            await runner.submit([tokens_of(5)])
        assert (refusal.value.cause, refusal.value.retry_after_s) == ("queue_wait", 9)
        with pytest.raises(OverloadedError, match="after its deadline"):
            await runner.submit([tokens_of(5)], deadline=clock.now + 5.0, priority="high")
        tasks.append(asyncio.create_task(runner.submit([tokens_of(6)], is_probe=True)))
        await at_rest()
    assert all(isinstance(result, Ticket) for result in await ended(*tasks))


async def test_only_late_items_leave_the_engine_alone(make_runner: MakeRunner) -> None:
    engine, clock = FakeEngine(), Clock()
    runner = make_runner(engine, clock=clock)
    with pytest.raises(DeadlineExceededError):
        await runner.submit([tokens_of(1)], deadline=clock.now)
    await runner.submit([tokens_of(2)])
    assert engine.seen == [[2]]


async def test_the_items_of_a_caller_who_left_are_not_run(make_runner: MakeRunner) -> None:
    engine = FakeEngine()
    runner = make_runner(engine)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)])
        await entered(engine)
        leaver = submitted(runner, [tokens_of(2), tokens_of(3)])[0]
        tasks += submitted(runner, [tokens_of(4)])
        await at_rest()
        leaver.cancel()
        assert isinstance((await ended(leaver))[0], asyncio.CancelledError)
    await ended(*tasks)
    assert engine.seen == [[1], [4]]


async def test_a_caller_may_leave_while_the_engine_runs_his_item(make_runner: MakeRunner) -> None:
    engine = FakeEngine()
    runner = make_runner(engine)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)], [tokens_of(2)])
        await entered(engine)
        tasks[0].cancel()
        await at_rest()
    assert [type(result) for result in await ended(*tasks)] == [asyncio.CancelledError, Ticket]


def test_results_for_an_event_loop_that_is_gone_are_dropped(make_runner: MakeRunner) -> None:
    engine = FakeEngine()
    runner = make_runner(engine)

    async def leave() -> None:
        engine.hold()
        submitted(runner, [tokens_of(1)])
        await entered(engine)

    asyncio.run(leave())  # cancels what still runs, and closes the loop
    engine.release()
    tokens = [tokens_of(2)]
    assert np.array_equal(asyncio.run(runner.submit(tokens)).rows, rows_of(tokens))


# --- The end


async def test_close_answers_everything_accepted_then_refuses(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=2)
    runner = make_runner(engine, budget=2)
    with engine.held():
        inputs = [[tokens_of(index)] for index in range(20)]
        tasks = submitted(runner, *inputs)
        await entered(engine)
        closing = asyncio.create_task(asyncio.to_thread(runner.close, SAFETY_S))
        while not runner._closing:  # the engine is held, so `close` itself cannot come back yet
            await asyncio.sleep(0)
        with pytest.raises(UnhealthyError, match="shutting down"):
            await runner.submit([tokens_of(99)])
    assert await closing
    for tokens, ticket in zip(inputs, await ended(*tasks), strict=True):
        assert isinstance(ticket, Ticket)
        assert np.array_equal(ticket.rows, rows_of(tokens))
    with pytest.raises(UnhealthyError):
        await runner.submit([tokens_of(99)])
    assert [99] not in engine.seen


async def test_close_without_a_timeout_fails_the_remaining_items(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=1)
    runner = make_runner(engine, budget=1)
    with engine.held():
        tasks = submitted(runner, *([tokens_of(index)] for index in range(5)))
        await entered(engine)
        assert not runner.close(0)
        assert [type(result) for result in await ended(*tasks)] == [EngineError] + [UnhealthyError] * 4


async def test_close_before_start_fails_what_was_accepted() -> None:
    runner = Runner(FakeEngine(), Metrics(), budget=16)
    tasks = submitted(runner, [tokens_of(1)])
    await at_rest()
    assert runner.close()
    assert isinstance((await ended(*tasks))[0], UnhealthyError)


def test_close_twice_is_close(make_runner: MakeRunner) -> None:
    runner = make_runner(FakeEngine())
    assert runner.close(SAFETY_S)
    assert runner.close(SAFETY_S)
