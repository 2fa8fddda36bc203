"""The runner with an engine in a process of its own: if the process ends, its batch gets 503 once, and others run."""

from __future__ import annotations

from collections.abc import Callable

from bei_core.engines.batch import Batch
from bei_core.errors import UnhealthyError
from bei_core.serving.runner import Runner, Ticket
from bei_core.tasks import Rows
from tests.fakes import Clock, FakeEngine, at_rest, ended, entered, submitted, tokens_of, watched

MakeRunner = Callable[..., Runner]


class Killable(FakeEngine):
    """A fake of an engine in a process: if the process is lost in a batch, a new one computes the next batch."""

    is_lost = False

    def forward(self, batch: Batch) -> Rows:
        """As `FakeEngine.forward`, or UnhealthyError."""
        rows = super().forward(batch)
        if self.is_lost:
            self.is_lost = False
            raise UnhealthyError("the process has ended")
        return rows


async def test_a_hang_of_an_engine_that_can_be_killed_fails_its_batch_once_with_503(make_runner: MakeRunner) -> None:
    """The engine is then started again, so items that wait are computed."""
    engine, clock, killed = Killable(max_seq_len=1), Clock(), list[int]()

    def kill() -> None:
        killed.append(len(engine.batches))
        engine.is_lost = True
        engine.release()

    runner = make_runner(engine, budget=1, hang_s=10, clock=clock, kill_engine=kill)
    with engine.held():
        tasks = submitted(runner, [tokens_of(1)], [tokens_of(2)])
        await entered(engine)
        await at_rest()
        assert watched(runner, clock, 11) is None
        lost, ticket = await ended(*tasks)
    assert isinstance(lost, UnhealthyError)
    assert isinstance(ticket, Ticket)
    assert engine.seen == [[1], [2]]
    assert killed[0] == 1


async def test_a_batch_whose_engine_is_lost_is_not_run_again_in_halves(make_runner: MakeRunner) -> None:
    engine = Killable()
    runner = make_runner(engine)
    engine.is_lost = True
    results = await ended(*submitted(runner, [tokens_of(1), tokens_of(2)]))
    assert isinstance(results[0], UnhealthyError)
    assert len(engine.batches) == 1
    assert (await runner.submit([tokens_of(3)])).waiting == 0


async def test_batches_that_fail_while_no_process_is_ready_do_not_count_as_fast(make_runner: MakeRunner) -> None:
    """They fail at once. If they counted, the server would accept far too much after the restart."""
    engine, clock = Killable(), Clock()
    runner = make_runner(engine, clock=clock)
    rate = runner.admission.rate
    rate.add(1000, 1.0)
    for _ in range(20):
        engine.is_lost = True
        clock.now += 0.001
        assert isinstance((await ended(*submitted(runner, [tokens_of(*range(1000))])))[0], UnhealthyError)
    assert rate.tokens_per_s == 1000
    assert rate.seconds(1000, budget=1000) == 1.0
