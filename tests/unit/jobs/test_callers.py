"""An engine that several threads may call gets several batches of a job at a time."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from bei_core.engines.batch import Batch
from bei_core.jobs.compute import Columns, Encoded, Started, Worker
from bei_core.jobs.threads import Threads
from bei_core.tasks import Rows
from tests.fakes import SAFETY_S
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.conftest import WORDS
from tests.unit.jobs.test_job import run, table


def test_the_outputs_of_a_part_are_not_kept_while_the_next_one_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "the"}\n' * 30)
    opens(monkeypatch)
    finish, num_finished = Worker.finish, 0

    def finish_and_check(worker: Worker, started: Started) -> tuple[Encoded, Columns]:
        nonlocal num_finished
        done = finish(worker, started)
        assert started.running
        assert started.outputs is None
        num_finished += 1
        return done

    monkeypatch.setattr(Worker, "columns", lambda worker: finish(worker, Started(Encoded(), worker._space(0)))[1])
    monkeypatch.setattr(Worker, "finish", finish_and_check)
    run(source, tmp_path / "out", rows_per_part=10)
    assert num_finished == 3


def test_an_engine_with_two_callers_gets_a_batch_while_another_one_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"text": "the text {number}"}}\n' for number in range(100)))
    engine = opens(monkeypatch)
    run(source, tmp_path / "one", rows_per_part=100)
    engine.info = replace(engine.info, num_callers=2)
    forward, lock, both = engine.forward, threading.Lock(), threading.Event()
    num_batches = len(engine.batches)
    entered = list[Batch]()

    def meet(batch: Batch) -> Rows:
        entered.append(batch)
        if len(entered) == 2:
            both.set()
        assert both.wait(SAFETY_S)
        with lock:
            return forward(batch)

    monkeypatch.setattr(engine, "forward", meet)
    run(source, tmp_path / "two", rows_per_part=100)
    assert len(entered) == num_batches > 2
    assert table(tmp_path / "two") == table(tmp_path / "one")


@pytest.mark.parametrize("error", [ValueError, IndexError])
def test_the_batches_after_one_that_fails_are_not_computed(error: type[Exception]) -> None:
    threads, entered = Threads(2), list[int]()

    def fail(number: int) -> None:
        entered.append(number)
        if number >= 2:
            raise error

    left = deque(range(100))
    running = threads.run(left, fail)
    assert {type(each.exception(SAFETY_S)) for each in running} >= {error}
    assert not left
    assert len(entered) < 10
    threads.close()


def test_batches_that_wait_are_not_computed_after_the_end_of_a_job() -> None:
    threads, entered, entered_one, close = Threads(1), list[int](), threading.Event(), threading.Event()

    def compute(number: int) -> None:
        entered.append(number)
        entered_one.set()
        assert close.wait(SAFETY_S)

    threads.run(deque(range(100)), compute)
    threads.run(deque(range(100)), compute)
    assert entered_one.wait(SAFETY_S)
    closing = threading.Thread(target=threads.close)
    closing.start()
    while not threads.is_closed:
        closing.join(0.001)
    close.set()
    closing.join(SAFETY_S)
    assert entered == [0]


def test_a_part_of_many_tokens_has_the_largest_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    texts = (" ".join(WORDS[number // 12**place % 12] for place in range(4)) for number in range(3000))  # no two equal
    source.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    engine = opens(monkeypatch)
    engine.info = replace(engine.info, precision="int8", batch_tokens=256, most_batch_tokens=512)
    run(source, tmp_path / "out", rows_per_part=2700)
    sizes = [sum(map(len, batch)) for batch in engine.batches]
    assert max(sizes) > 256, "the first part has more than 16 batches of 512 tokens"
    assert max(sizes[-(300 * 6 // 256) :]) <= 256, "the second one has not"
