"""The torch engine with two callers: one batch is prepared while another one runs. A fake stream stands for the GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.torch import engine as torch_engine
from bei_core.engines.torch import graphs
from bei_core.engines.torch.graphs import Graphs
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.fakes import SAFETY_S
from tests.golden.cases import CASES
from tests.golden.tolerance import F32, compare
from tests.gpu_path.conftest import Builder

CASE = next(case for case in CASES if case.name == "bert-cls-normalize")
BATCHES = [Batch.pack([Tokens(ids, np.zeros_like(ids))]) for ids in CASE.ids]


@pytest.fixture
def engine(built: Builder) -> Any:
    checkpoint = resolve(str(CASE.folder))
    return built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine


def run_by_two(engine: Any) -> None:
    """Runs all batches by two threads, and compares the rows with those of transformers."""
    with ThreadPoolExecutor(engine.info.num_callers) as pool:
        rows = list(pool.map(engine.forward, BATCHES, timeout=SAFETY_S))
    compare(np.concatenate(rows), CASE.raw, F32)


class LazyStream:
    """A stream that does nothing until a caller waits for an event of it, and until then leaves NaN in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work: list[Callable[[], object]] = []
        self.calls: list[str] = []
        self.second = threading.Event()  # a second batch was launched
        monkeypatch.setattr(torch_engine, "copy_to_host", self.copy)
        monkeypatch.setattr(torch_engine, "record_event", self.record)

    def copy(self, rows: Tensor | None, count: int) -> Tensor:
        if rows is None:
            return torch.empty(count, 0)
        host = torch.full_like(rows, float("nan"))
        self.work.append(lambda: host.copy_(rows))
        return host

    def record(self, device: torch.device) -> Any:
        number, launched = len(self.work), self.calls.count("launched")
        self.calls.append("launched")
        if launched == 1:
            self.second.set()
        return SimpleNamespace(synchronize=lambda: self.synchronize(number))

    def synchronize(self, number: int) -> None:
        assert self.second.wait(SAFETY_S)  # fails if a caller keeps the others from launching while it waits
        self.calls.append("waited")
        for work in self.work[:number]:
            work()


def test_a_batch_is_launched_while_another_one_runs_and_each_caller_waits_once(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = LazyStream(monkeypatch)
    run_by_two(engine)
    assert stream.calls[:2] == ["launched", "launched"]
    assert sorted(stream.calls) == ["launched"] * len(BATCHES) + ["waited"] * len(BATCHES)


def test_the_rows_of_a_graph_are_copied_before_the_next_batch_overwrites_them(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch waits until the other caller has launched its own, where the engine lets it."""
    launched, barrier = list[None](), threading.Barrier(2)

    def record(compute: Callable[[], Tensor], shared: object) -> tuple[Callable[[], None], Tensor, object]:
        rows = compute().clone()
        return (lambda: rows.copy_(compute())), rows, shared

    def wait(device: torch.device) -> Any:
        launched.append(None)

        def synchronize() -> None:
            if len(BATCHES) % 2 == 0 or len(launched) < len(BATCHES):
                barrier.wait(SAFETY_S)

        return SimpleNamespace(synchronize=synchronize)

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(torch_engine, "record_event", wait)
    engine._graphs = Graphs(engine._model, engine.info.max_seq_len)
    run_by_two(engine)
