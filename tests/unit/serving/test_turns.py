"""Engines that take turns: one at a time, in the order of asking, and one that hangs is everyone's fault."""

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
from tests.fakes import SAFETY_S, Clock, FakeEngine, at_rest, ended, entered, submitted, tokens_of

MakeRunner = Callable[..., Runner]


class Holder:
    """Who takes turns."""

    def __init__(self) -> None:
        self.broken: str | None = None


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


def test_turns_are_given_in_the_order_of_asking() -> None:
    turns, order = Turns(), list[int]()

    def take(number: int) -> None:
        with turns.taken(Holder()):
            order.append(number)

    threads = []
    with turns.taken(Holder()):
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
    turns = Turns()
    with pytest.raises(KeyError), turns.taken(Holder()):
        raise KeyError
    with turns.taken(Holder()):
        pass


def test_a_turn_that_never_ends_is_told_to_those_who_wait_and_to_all_after() -> None:
    turns, stuck = Turns(), Holder()
    told: list[str] = []

    def take() -> None:
        try:
            with turns.taken(Holder()):
                pass
        except UnhealthyError as fault:
            told.append(fault.message)

    thread = threading.Thread(target=take)
    with turns.taken(stuck):
        thread.start()
        stuck.broken = "it hangs"
        thread.join(SAFETY_S)
        take()
    take()  # it came back after all, and nobody knows for how long
    assert told == ["another model of this server broke down: it hangs"] * 3


async def test_two_engines_never_run_at_once(make_runner: MakeRunner) -> None:
    busy = threading.Lock()

    class Jealous(FakeEngine):
        def forward(self, batch: Batch) -> Rows:
            assert busy.acquire(blocking=False), "two engines run at once"
            try:
                return super().forward(batch)
            finally:
                busy.release()

    turns = Turns()
    runners = [make_runner(Jealous(), turns, max_items=2) for _ in range(3)]
    tasks = [task for runner in runners for task in submitted(runner, *([tokens_of(i, i + 1)] for i in range(40)))]
    assert all(isinstance(result, Ticket) for result in await ended(*tasks))


async def test_a_queue_fills_while_its_runner_waits(make_runner: MakeRunner) -> None:
    turns, first, second = Turns(), FakeEngine(), FakeEngine()
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
    turns, first, second, clock = Turns(), FakeEngine(), FakeEngine(), Clock()
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


async def test_an_engine_that_hangs_breaks_those_that_wait_for_it_and_those_that_come_later(
    make_runner: MakeRunner,
) -> None:
    turns, clock = Turns(), Clock()
    engines = [FakeEngine() for _ in range(3)]
    stuck, waiting, idle = (make_runner(engine, turns, hang_s=120.0, clock=clock) for engine in engines)
    with engines[0].held():
        (held,) = submitted(stuck, [tokens_of(1)])
        await entered(engines[0])
        (waits,) = submitted(waiting, [tokens_of(2)])
        await at_rest()
        clock.now += 121.0
        results = await ended(held, waits, *submitted(idle, [tokens_of(3)]))
        assert [type(result) for result in results] == [EngineError, UnhealthyError, UnhealthyError]
        assert all("120 s" in str(runner.broken) for runner in (stuck, waiting, idle))
    with pytest.raises(UnhealthyError, match="another model"):
        await waiting.submit([tokens_of(4)])


async def test_a_batch_that_fails_gives_the_turn_back(make_runner: MakeRunner) -> None:
    turns, first, second = Turns(), FakeEngine(raises_on=[7]), FakeEngine()
    ours, other = make_runner(first, turns), make_runner(second, turns)
    tasks = [*submitted(ours, [tokens_of(7)]), *submitted(other, [tokens_of(1)])]
    results = await ended(*tasks)
    assert [type(result) for result in results] == [EngineError, Ticket]
    assert isinstance((await ended(*submitted(ours, [tokens_of(1)])))[0], Ticket)


async def test_closing_runs_what_was_accepted_in_turn(make_runner: MakeRunner) -> None:
    turns, first, second = Turns(), FakeEngine(), FakeEngine()
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
