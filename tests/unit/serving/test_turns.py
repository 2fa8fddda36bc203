"""Engines that take turns: one at a time, in the order of requests; the others wait once for one that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from bei_core.engines.batch import Batch
from bei_core.errors import EngineError, UnhealthyError
from bei_core.metrics import Metrics
from bei_core.serving.runner import Runner, Ticket
from bei_core.serving.turns import Turns
from bei_core.tasks import Rows
from tests.fakes import (
    SAFETY_S,
    Clock,
    FakeEngine,
    at_rest,
    ended,
    entered,
    submitted,
    tokens_of,
    tokens_of_length,
    watched,
)

MakeRunner = Callable[..., Runner]


LIMIT_S = 5.0  # of a turn, on a clock that stands still unless a test moves it


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bei_core.serving.turns._CHECK_S", 0.01)


@pytest.fixture
def make_runner() -> Iterator[MakeRunner]:
    """Starts runners that share `turns`, and ends them."""
    made: list[tuple[FakeEngine, Runner]] = []

    def make(engine: FakeEngine, turns: Turns, **options: object) -> Runner:
        runner = Runner(engine, Metrics(), budget=512, turns=turns, **options)  # type: ignore[arg-type]
        made.append((engine, runner))
        runner.start()
        return runner

    yield make
    for engine, _ in made:
        engine.release()
    for _, runner in made:
        runner.close(SAFETY_S)


async def in_line(turns: Turns, count: int) -> None:
    """Waits until this many engines have a turn or wait for one."""
    while len(turns._line) != count:
        await asyncio.sleep(0.001)


def test_turns_are_given_in_the_order_of_asking() -> None:
    turns, order = Turns(Clock()), list[int]()

    def take(number: int) -> None:
        with turns.taken():
            order.append(number)

    threads = []
    with turns.taken():
        for number in range(5):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(turns._line) < number + 2:
                pass
        assert not order
    for thread in threads:
        thread.join(SAFETY_S)
    assert order == list(range(5))


def test_a_turn_ends_with_its_block_however_that_ends() -> None:
    turns = Turns(Clock())
    with pytest.raises(KeyError), turns.taken():
        raise KeyError
    with turns.taken():
        pass


def test_a_turn_that_takes_too_long_is_over_for_those_who_wait() -> None:
    clock = Clock()
    turns, order = Turns(clock), list[str]()

    def take(name: str) -> threading.Thread:
        def run() -> None:
            with turns.taken():
                turns.limit(LIMIT_S)
                order.append(name)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    with turns.taken():
        turns.limit(LIMIT_S)
        threads = [take("first")]
        while len(turns._line) < 2:
            pass
        threads.append(take("second"))
        while len(turns._line) < 3:
            pass
        clock.now += 0.9 * LIMIT_S
        threads[0].join(0.05)
        assert not order
        clock.now += 0.2 * LIMIT_S
        for thread in threads:
            thread.join(SAFETY_S)
        order.append("the slow one comes back")
    with turns.taken():  # the late end of the first turn does not end this one
        assert len(turns._line) == 1
    assert order == ["first", "second", "the slow one comes back"]


async def test_two_engines_never_run_at_once(make_runner: MakeRunner) -> None:
    busy = threading.Lock()

    class Jealous(FakeEngine):
        def forward(self, batch: Batch) -> Rows:
            assert busy.acquire(blocking=False), "two engines run at once"
            try:
                return super().forward(batch)
            finally:
                busy.release()

    turns = Turns(Clock())
    runners = [make_runner(Jealous(), turns, max_items=2) for _ in range(3)]
    tasks = [task for runner in runners for task in submitted(runner, *([tokens_of(i, i + 1)] for i in range(40)))]
    assert all(isinstance(result, Ticket) for result in await ended(*tasks))


async def test_a_queue_fills_while_its_runner_waits(make_runner: MakeRunner) -> None:
    turns, first, second = Turns(Clock()), FakeEngine(), FakeEngine()
    ours, other = make_runner(first, turns), make_runner(second, turns)
    with first.held():
        (held,) = submitted(ours, [tokens_of(1)])
        await entered(first)
        waiting = []
        for number in range(5):
            waiting += submitted(other, [tokens_of(number)])
            await at_rest()
        assert not second.batches
    assert all(isinstance(result, Ticket) for result in await ended(held, *waiting))
    assert [len(batch) for batch in second.batches] == [5]


async def test_waiting_for_a_turn_is_not_hanging(make_runner: MakeRunner) -> None:
    turns, first, second, clock = Turns(Clock()), FakeEngine(), FakeEngine(), Clock()
    ours = make_runner(first, turns, hang_s=1e9, clock=clock)
    other = make_runner(second, turns, hang_s=120.0, clock=clock)
    with first.held():
        tasks = submitted(ours, [tokens_of(1)])
        await entered(first)
        tasks += submitted(other, [tokens_of(2)])
        await at_rest()
        clock.now += 1000.0
        assert other.broken is None
    assert all(isinstance(result, Ticket) for result in await ended(*tasks))


async def test_an_engine_that_hangs_leaves_the_others_at_work(make_runner: MakeRunner) -> None:
    clock = Clock()
    turns, engines = Turns(clock), [FakeEngine() for _ in range(3)]
    stuck, waiting, idle = (make_runner(engine, turns, hang_s=120.0, clock=clock) for engine in engines)
    with engines[0].held():
        (held,) = submitted(stuck, [tokens_of(1)])
        await entered(engines[0])
        (waits,) = submitted(waiting, [tokens_of(2)])
        await at_rest()
        assert not engines[1].batches
        clock.now += 2.0  # longer than a turn, and far from a hang
        results = await ended(waits, *submitted(idle, [tokens_of(3)]))
        assert [type(result) for result in results] == [Ticket, Ticket]
        assert watched(stuck, clock, 121)
        assert [type(result) for result in await ended(held)] == [EngineError]
        assert "120 s" in str(stuck.broken)
        assert [waiting.broken, idle.broken] == [None, None]
        assert isinstance((await ended(*submitted(waiting, [tokens_of(4)])))[0], Ticket)
        with pytest.raises(UnhealthyError, match="120 s"):
            await stuck.submit([tokens_of(5)])


async def test_a_short_text_that_hangs_does_not_take_the_time_of_a_full_batch(make_runner: MakeRunner) -> None:
    clock = Clock()
    turns, engines = Turns(clock), [FakeEngine(), FakeEngine()]
    stuck, other = (make_runner(engine, turns, hang_s=120.0, clock=clock) for engine in engines)
    for num_tokens in (10, 20):  # of the warm-up, on a busy machine
        stuck.admission.rate.add(num_tokens, num_tokens / 10, num_tokens)
    with engines[0].held():
        tasks = submitted(stuck, [tokens_of(1)])
        await entered(engines[0])
        tasks += submitted(other, [tokens_of(2)])
        await at_rest()
        clock.now += 20.0
        assert isinstance((await ended(tasks[1]))[0], Ticket)
        assert not tasks[0].done(), "the turn ended with the batch"
    await ended(*tasks)


async def test_the_wait_for_turns_is_no_time_of_the_batch(make_runner: MakeRunner) -> None:
    clock = Clock()

    class Timed(FakeEngine):
        def forward(self, batch: Batch) -> Rows:
            clock.now += 0.01
            return super().forward(batch)

    turns, engines = Turns(clock), [Timed(), Timed()]
    slow, ours = (make_runner(engine, turns, clock=clock, max_queue_wait_s=10.0) for engine in engines)
    slow.admission.rate.add(1, 20.0)
    for _ in range(3):  # each of our texts waits for a batch that takes its usual 20 s
        with engines[0].held():
            tasks = submitted(slow, [tokens_of(1)])
            await entered(engines[0])
            tasks += submitted(ours, [tokens_of_length(100)])
            await in_line(turns, 2)
            clock.now += 20.0
        assert [type(result) for result in await ended(*tasks)] == [Ticket, Ticket]
        await in_line(turns, 0)
        await entered(engines[1])
    assert ours.admission.expected_s(1000) == pytest.approx(2 * 20.0, rel=0.01), "it waits for a turn for each batch"
    assert ours.admission.budget == 512, "smaller batches would only wait more often"
    with engines[1].held():  # our engine hangs
        hung, *_ = submitted(ours, [tokens_of(1)])
        await entered(engines[1])
        tasks = submitted(slow, [tokens_of(2)])
        await at_rest()
        clock.now += 2.0
        assert isinstance((await ended(*tasks))[0], Ticket)
        assert not hung.done(), "the turn ended with the batch"
    await ended(hung)


async def test_a_batch_that_fails_gives_the_turn_back(make_runner: MakeRunner) -> None:
    turns, first, second = Turns(Clock()), FakeEngine(raises_on=[7]), FakeEngine()
    ours, other = make_runner(first, turns), make_runner(second, turns)
    tasks = [*submitted(ours, [tokens_of(7)]), *submitted(other, [tokens_of(1)])]
    results = await ended(*tasks)
    assert [type(result) for result in results] == [EngineError, Ticket]
    assert isinstance((await ended(*submitted(ours, [tokens_of(1)])))[0], Ticket)


async def test_closing_runs_what_was_accepted_in_turn(make_runner: MakeRunner) -> None:
    turns, first, second = Turns(Clock()), FakeEngine(), FakeEngine()
    ours, other = make_runner(first, turns), make_runner(second, turns)
    with first.held():
        tasks = [*submitted(ours, [tokens_of(1)])]
        await entered(first)
        tasks += submitted(other, [tokens_of(2)])
        await at_rest()
        closing = asyncio.create_task(asyncio.to_thread(other.close, SAFETY_S))
        await at_rest()
    assert await closing
    assert all(isinstance(result, Ticket) for result in await ended(*tasks))


def test_one_model_has_no_lock() -> None:
    assert Runner(FakeEngine(), Metrics(), budget=512)._turns is None
