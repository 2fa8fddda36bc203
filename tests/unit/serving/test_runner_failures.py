"""The runner with an engine that fails, hangs or gives wrong rows: every input ends, only bad ones fail."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bei_core.engines.batch import Batch
from bei_core.errors import BeiError, EngineError, UnhealthyError
from bei_core.metrics import Metrics
from bei_core.serving.runner import Runner, Ticket
from bei_core.tasks import Rows, Tokens
from tests.fakes import (
    SAFETY_S,
    WIDTH,
    Clock,
    FakeEngine,
    at_rest,
    ended,
    entered,
    requests,
    rows_of,
    submitted,
    tokens_of,
    watched,
)

MakeRunner = Callable[..., Runner]

BAD, NAN = 666, 777  # ids on which the engine raises, gives NaN


# --- Failures


async def test_an_item_on_which_the_engine_raises_fails_its_request_alone(make_runner: MakeRunner) -> None:
    engine = FakeEngine(raises_on=[BAD])
    runner = make_runner(engine)
    inputs = [[tokens_of(index)] for index in range(12)]
    inputs[7] = [tokens_of(7), tokens_of(BAD)]
    with engine.held():
        tasks = submitted(runner, *inputs)
        await at_rest()
    results = await ended(*tasks)
    assert isinstance(results.pop(7), EngineError)
    for tokens, ticket in zip(inputs[:7] + inputs[8:], results, strict=True):
        assert isinstance(ticket, Ticket)
        assert np.array_equal(ticket.rows, rows_of(tokens))
    assert runner.broken is None


async def test_several_bad_items_each_fail_their_own_request(make_runner: MakeRunner) -> None:
    runner = make_runner(FakeEngine(raises_on=[BAD]))
    inputs = [[tokens_of(index, BAD if index % 3 == 0 else 1)] for index in range(20)]
    results = await ended(*submitted(runner, *inputs))
    assert [isinstance(result, EngineError) for result in results] == [index % 3 == 0 for index in range(20)]


async def test_nan_fails_the_request_it_belongs_to(make_runner: MakeRunner) -> None:
    runner = make_runner(FakeEngine(nan_on=[NAN]))
    inputs = [[tokens_of(index), tokens_of(NAN if index == 2 else 5, index)] for index in range(5)]
    results = await ended(*submitted(runner, *inputs))
    assert [isinstance(result, EngineError) for result in results] == [False, False, True, False, False]
    assert "NaN" in str(results[2])


@pytest.mark.parametrize("row", [[np.inf, -np.inf], [np.nan, 0], [-np.inf, 0]], ids=str)
async def test_nan_and_infinity_are_errors_and_not_rows(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, row: list[float]
) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(engine, "forward", lambda batch: np.array([row * (WIDTH // len(row))], np.float32))
    with pytest.raises(EngineError, match="NaN or infinity"):
        await make_runner(engine).submit([tokens_of(1)])


async def test_finite_rows_whose_sum_is_not_are_rows(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    huge = np.full((1, WIDTH), 3e38, np.float32)
    monkeypatch.setattr(engine, "forward", lambda batch: huge)
    assert np.array_equal((await make_runner(engine).submit([tokens_of(1)])).rows, huge)


async def test_a_batch_that_fails_once_is_run_again_in_halves(make_runner: MakeRunner) -> None:
    engine = FakeEngine(num_failures=1)
    runner = make_runner(engine)
    tokens = [tokens_of(index) for index in range(4)]
    assert np.array_equal((await runner.submit(tokens)).rows, rows_of(tokens))
    assert [len(batch) for batch in engine.batches] == [4, 2, 2]


async def test_an_engine_that_recovers_serves_the_next_request(make_runner: MakeRunner) -> None:
    runner = make_runner(FakeEngine(num_failures=3))  # a pair, and each of it
    pair = [tokens_of(1), tokens_of(2)]
    with pytest.raises(EngineError):
        await runner.submit(pair)
    assert np.array_equal((await runner.submit(pair)).rows, rows_of(pair))


async def test_the_caller_of_a_failed_item_sees_no_traceback_and_the_log_does(
    make_runner: MakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner = make_runner(FakeEngine(raises_on=[BAD]))
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError) as failure:
        await runner.submit([tokens_of(BAD)])
    assert str(failure.value) == "the engine failed on this input; see the server's log"
    assert "EngineFaultError" in caplog.text
    assert caplog.messages == ["model: the engine failed on an input of 1 tokens"]


class BrokenMetrics(Metrics):
    """Fails on the first batch."""

    num_calls = 0

    def batch(self, size: int, num_tokens: int, seconds: float, padding_share: float) -> None:
        self.num_calls += 1
        if self.num_calls == 1:
            raise RuntimeError("a bug outside the engine")


async def test_a_failure_outside_the_engine_fails_the_items_of_that_batch(make_runner: MakeRunner) -> None:
    engine = FakeEngine(max_seq_len=2)
    runner = make_runner(engine, budget=2, metrics=BrokenMetrics())
    with engine.held():
        tasks = submitted(runner, *([tokens_of(index)] for index in range(6)))
        await at_rest()
    failed = [isinstance(result, EngineError) for result in await ended(*tasks)]
    assert failed == [index < len(engine.batches[0]) for index in range(6)]
    assert runner.broken is None


@pytest.mark.parametrize("shape", [(1, WIDTH), (3, WIDTH), (2, 1), (2,)], ids=str)
async def test_rows_of_a_wrong_shape_are_given_to_no_caller(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """A row of width 1 would be broadcast; a missing row would leave a caller waiting."""
    engine = FakeEngine()
    runner = make_runner(engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "forward", lambda batch: np.zeros(shape, np.float32))
        tasks = submitted(runner, [tokens_of(1), tokens_of(2)])
        assert isinstance((await ended(*tasks))[0], EngineError)
    assert (await runner.submit([tokens_of(1)])).rows.shape == (1, 8)


async def test_a_failure_of_the_queue_ends_every_wait(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of the queue")

    monkeypatch.setattr("bei_core.serving.queue.Pending.take", fail)
    runner = make_runner(FakeEngine())
    results = await ended(*submitted(runner, [tokens_of(1)], [tokens_of(2)]))
    assert all(isinstance(result, (EngineError, UnhealthyError)) for result in results)
    assert runner.broken is not None


async def test_a_request_without_inputs_is_a_bug_rather_than_a_wait(make_runner: MakeRunner) -> None:
    with pytest.raises(ValueError, match="this is a bug"):
        await make_runner(FakeEngine()).submit([])


@pytest.mark.parametrize("bad", [BAD, NAN])
async def test_after_an_item_failed_the_rest_of_its_request_is_not_run(make_runner: MakeRunner, bad: int) -> None:
    engine = FakeEngine(max_seq_len=1, raises_on=[BAD], nan_on=[NAN])
    runner = make_runner(engine, budget=1)
    with engine.held():
        tasks = submitted(runner, [tokens_of(bad), tokens_of(1), tokens_of(2)], [tokens_of(3)])
        await entered(engine)
        await at_rest()
    assert engine.entered.acquire(timeout=SAFETY_S)  # without a turn of this loop, which cannot have dropped them
    assert isinstance((await ended(*tasks))[0], EngineError)
    assert engine.seen == [[bad], [3]]


# --- Hangs


async def test_a_hang_fails_all_waiting_requests_and_refuses_new_ones(make_runner: MakeRunner) -> None:
    engine, clock = FakeEngine(max_seq_len=1), Clock()
    runner = make_runner(engine, budget=1, hang_s=10, clock=clock)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)], [tokens_of(2), tokens_of(3)])
        await entered(engine)
        await at_rest()
        assert watched(runner, clock, 10) is None
        assert watched(runner, clock, 1) is not None
        assert [type(result) for result in await ended(*tasks)] == [
            EngineError,
            UnhealthyError,
        ]  # had it, waited for it
        with pytest.raises(UnhealthyError, match="not answered for 10 s"):
            await runner.submit([tokens_of(4)])
    assert await asyncio.to_thread(runner.close, SAFETY_S)
    assert engine.seen == [[1]]  # what was failed is not run when the engine comes back
    assert runner.broken is not None


async def test_a_hang_is_noticed_by_the_next_request_without_a_health_check(
    make_runner: MakeRunner,
) -> None:
    engine, clock = FakeEngine(), Clock()
    runner = make_runner(engine, hang_s=10, clock=clock)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)])
        await entered(engine)
        watched(runner, clock, 10)
        clock.now += 1
        with pytest.raises(UnhealthyError):
            await runner.submit([tokens_of(2)])
        assert isinstance((await ended(*tasks))[0], EngineError)


async def test_a_process_that_was_stopped_does_not_hang(make_runner: MakeRunner) -> None:
    """As with `docker pause` or a virtual machine that is moved; the engine went on, and the server was unhealthy."""
    engine, clock = FakeEngine(), Clock()
    runner = make_runner(engine, hang_s=10, clock=clock)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)])
        await entered(engine)
        clock.now += 1000
        assert runner.broken is None
        assert watched(runner, clock, 10) is None
        assert watched(runner, clock, 1) == "the engine has not answered for 10 s"
        await ended(*tasks)


async def test_an_idle_engine_does_not_hang(make_runner: MakeRunner) -> None:
    clock = Clock()
    runner = make_runner(FakeEngine(), hang_s=10, clock=clock)
    await runner.submit([tokens_of(1)])
    while (
        runner.admission.running.started is not None
    ):  # the row is here a moment before the engine thread is done with it
        await asyncio.sleep(0)
    clock.now += 1000
    assert runner.broken is None
    await runner.submit([tokens_of(2)])


async def test_a_slow_engine_does_not_hang(make_runner: MakeRunner) -> None:
    """A batch may take ten times its expected time, if that is more than the setting allows."""
    engine, clock = FakeEngine(), Clock()
    runner = make_runner(engine, hang_s=10, clock=clock)
    runner.admission.rate.add(1, 5.0)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)])
        await entered(engine)
        assert watched(runner, clock, 49) is None
        assert watched(runner, clock, 2) == "the engine has not answered for 50 s"
        assert isinstance((await ended(*tasks))[0], EngineError)


async def test_each_row_of_a_large_request_proves_the_engine(make_runner: MakeRunner) -> None:
    engine, clock = FakeEngine(max_seq_len=1), Clock()
    runner = make_runner(engine, budget=1, clock=clock)
    engine.hold()
    (task,) = submitted(runner, [tokens_of(index) for index in range(3)])
    await entered(engine)
    assert runner.proven_at < clock.now
    engine.release()
    await entered(engine)
    assert runner.proven_at == clock.now
    await ended(task)


# --- The end of the thread


class PanicError(BaseException):
    """As PyO3 raises for a panic in Rust."""


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), PanicError()], ids=repr)
async def test_an_exception_that_ends_the_engine_thread_ends_every_wait_and_is_reported(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: BaseException
) -> None:
    engine = FakeEngine(max_seq_len=2)
    runner = make_runner(engine, budget=2)
    forward = engine.forward

    def fail(batch: Batch) -> Rows:
        forward(batch)
        raise fault

    monkeypatch.setattr(engine, "forward", fail)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1), tokens_of(2)], *([tokens_of(index)] for index in range(5)))
        await entered(engine)
        await at_rest()
        assert not runner.crashed.done()
    results = await ended(*tasks)
    assert [type(result) for result in results] == [EngineError, *[UnhealthyError] * 5]
    assert type(fault).__name__ in runner.crashed.result(SAFETY_S)
    assert type(fault).__name__ in str(runner.broken)
    assert len(engine.batches) == 1
    with pytest.raises(UnhealthyError):
        await runner.submit([tokens_of(9)])
    assert "the engine thread failed" in caplog.text


async def test_a_batch_in_halves_ends_every_wait_too(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, calls = FakeEngine(num_failures=1), list[int]()
    forward = engine.forward

    def fail(batch: Batch) -> Rows:
        calls.append(len(batch))
        if len(calls) == 3:  # the whole, its first half, its second half
            raise SystemExit
        return forward(batch)

    monkeypatch.setattr(engine, "forward", fail)
    runner = make_runner(engine)
    with engine.held():
        tasks = submitted(runner, [tokens_of(0)])
        await entered(engine)
        engine.num_failures += 1
        tasks += submitted(runner, *([tokens_of(index)] for index in range(1, 5)))
        await at_rest()
    results = await ended(*tasks)
    assert all(isinstance(result, (Ticket, BeiError)) for result in results)
    assert calls[1:] == [4, 2]


# --- Everything at once


def expected(tokens: Sequence[Tokens]) -> Rows | None:
    """Rows, or None for a request that has to fail."""
    ids = {int(value) for item in tokens for value in item.ids}
    return None if ids & {BAD, NAN} else rows_of(tokens)


@pytest.mark.parametrize("seed", range(3))
async def test_every_request_ends_once_as_it_should_whatever_happens_to_others(
    make_runner: MakeRunner, seed: int
) -> None:
    numbers = random.Random(seed)
    engine = FakeEngine(max_seq_len=64, raises_on=[BAD], nan_on=[NAN])
    runner = make_runner(engine, budget=128, max_items=numbers.choice([None, 5]))
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    inputs = requests(120, seed)
    for tokens in numbers.sample(inputs, 20):
        tokens[numbers.randrange(len(tokens))] = tokens_of(numbers.choice([BAD, NAN]), numbers.randrange(500))
    tasks = []
    for tokens in inputs:
        tasks += submitted(runner, tokens)
        if numbers.random() < 0.2:
            await asyncio.sleep(0)
    leavers = numbers.sample(tasks, 15)
    for task in leavers:
        task.cancel()
    for task, tokens, result in zip(tasks, inputs, await ended(*tasks), strict=True):
        rows = expected(tokens)
        if task in leavers and isinstance(result, asyncio.CancelledError):
            continue
        if rows is None:
            assert isinstance(result, EngineError)
        else:
            assert isinstance(result, Ticket)
            assert np.array_equal(result.rows, rows)
    await at_rest()
    assert not faults  # a future settled twice would be one
    assert (runner.num_items, runner.broken) == (0, None)


async def test_a_ticket_is_settled_by_its_first_outcome_and_by_no_other() -> None:
    loop = asyncio.get_running_loop()
    ticket = Ticket(loop.create_future(), "rows", np.zeros((1, WIDTH), np.float32), 1, 0.0)
    ticket.error = EngineError("first")
    ticket.resolve()
    ticket.error = None
    ticket.resolve()
    with pytest.raises(BeiError, match="first"):
        await ticket.future
