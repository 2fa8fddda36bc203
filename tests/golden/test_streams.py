"""The CPU engine of a job computes several batches at a time, each as it would alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import load
from bei_core.engines.openvino import engine as openvino_engine
from bei_core.engines.openvino.compiled import Graphs, Outputs
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.fakes import SAFETY_S
from tests.golden.cases import CASES
from tests.golden.engines import built
from tests.golden.tolerance import F32, compare

CASE = next(case for case in CASES if case.name == "bert-cls-normalize")
BATCHES = [Batch.pack([Tokens(ids, np.zeros_like(ids))]) for ids in CASE.ids]
NUM_STREAMS = 3


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> openvino_engine.OpenVinoEngine:
    """An engine for jobs on seven processors, of which no more than three compute a batch each."""
    monkeypatch.setattr(openvino_engine, "usable_cpus", lambda: 7)
    monkeypatch.setattr(openvino_engine, "_MAX_STREAMS", NUM_STREAMS)
    checkpoint = resolve(str(CASE.folder))
    built(checkpoint, read_spec(checkpoint), tmp_path / "engine")
    settings = Settings.load({"model_id": str(tmp_path / "engine")}, {})
    engine = load(tmp_path / "engine", "float32", settings, for_job=True).engine
    assert isinstance(engine, openvino_engine.OpenVinoEngine)
    return engine


def test_batches_that_run_at_the_same_time_get_what_they_get_alone(
    engine: openvino_engine.OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.info.num_callers == NUM_STREAMS
    alone = [engine.forward(batch) for batch in BATCHES]
    compare(np.concatenate(alone), CASE.raw, F32)
    infer, all_run = Graphs.infer, threading.Barrier(NUM_STREAMS)

    def meet(graphs: Graphs, batch: Batch, wanted: str) -> Outputs:
        all_run.wait(SAFETY_S)
        return infer(graphs, batch, wanted)

    monkeypatch.setattr(Graphs, "infer", meet)
    batches = BATCHES[: len(BATCHES) // NUM_STREAMS * NUM_STREAMS]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        found = list(pool.map(engine.forward, batches, timeout=SAFETY_S))
    for one, other in zip(found, alone, strict=False):
        assert np.array_equal(one, other)
    engine.close()


def test_each_thread_is_told_the_padding_of_its_own_batch(engine: openvino_engine.OpenVinoEngine) -> None:
    short, long = (Batch.pack([Tokens(np.ones(size, np.int32), np.zeros(size, np.int32))]) for size in (4, 16))
    engine.forward(short)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(engine.forward, long).result(SAFETY_S)
        assert pool.submit(engine.padding_share).result(SAFETY_S) == 0
    assert engine.padding_share() == 1 - 4 / 16


def test_it_compiles_no_graphs_for_lone_texts(
    engine: openvino_engine.OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have other bits than the graph for any batch, and a job has to write the same bytes each time."""
    monkeypatch.setattr(openvino_engine, "_LONE_TEXTS", 1)
    engine.forward(BATCHES[0])
    assert engine._preparing is None
    engine.close()
