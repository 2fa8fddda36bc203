"""CUDA graphs emulated on the CPU: a recorded function computes again on the arrays that it was recorded with."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.torch import batches, graphs
from bei_core.engines.torch.graphs import Graphs, Shape
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import CASES, CLASSIFICATION_CASES, GROUP_CASES, GROUP_CLASSIFICATION_CASES
from tests.golden.tolerance import F32, LOGITS_F32, compare, compare_logits
from tests.gpu_path.conftest import Builder

EVERY: tuple[Any, ...] = (*CASES, *GROUP_CASES, *CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)
NAMED = {case.name: case for case in EVERY}
# A graph has FlashAttention only, so MPNet, T5, JinaBERT and DeBERTa are not here.
NAMES = (
    "bert-cls-normalize",
    "bert-mean-cls-list",
    "roberta-weightedmean-pad5",
    "distilbert-every-mode",
    "modernbert-plain-masked-lm",
    "nomic-plain-prefix",
    "gte-en-plain",
    "nomic-v2-moe",
    "llama-3-rope-last",
    "mistral-window-last",
    "qwen3-embedding",
    "bert-rerank-pad7",
    "llama-reward",
)


def blank(*lengths: int) -> Batch:
    return Batch.pack([Tokens(np.ones(length, np.int32), np.zeros(length, np.int32)) for length in lengths])


@given(st.lists(st.integers(1, 600), min_size=1, max_size=10), st.sampled_from([40, 512, 8192]))
def test_every_token_of_a_padded_batch_belongs_to_a_sequence_that_the_kernel_can_compute(
    lengths: list[int], max_seq_len: int
) -> None:
    batch = blank(*lengths)
    shape = Shape.of(batch, max_seq_len)
    if shape is None:
        return
    padded = shape.pad(batch)
    assert len(padded) == shape.texts + 1
    assert padded.lengths.sum() == padded.num_tokens == len(padded.type_ids) == shape.tokens
    assert padded.lengths.max() <= shape.longest
    assert padded.lengths[-1] <= max_seq_len  # it has positions
    assert padded.lengths[: len(batch)].tolist() == lengths
    assert len(padded.skips) == len(padded)


def test_large_batches_have_no_graph() -> None:
    assert Shape.of(blank(*[3] * 9), 512) is None
    assert Shape.of(blank(1000, 100), 1024) is None
    assert Shape.of(blank(600), 1024) is None


class Emulation:
    """Stands for `graphs.record`."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor, object]:
        rows = torch.full_like(compute(), float("nan"))
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            rows.copy_(compute())

        return replay, rows, pool


@pytest.mark.parametrize("name", NAMES)
def test_rows_by_graphs_are_those_of_transformers(name: str, built: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    emulation = Emulation()
    monkeypatch.setattr(graphs, "record", emulation)
    case = NAMED[name]
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    engine: Any = built(checkpoint, spec, engine="torch", dtype="float32").engine
    engine._graphs = Graphs(engine._model, spec.max_seq_len)
    types = getattr(case, "type_ids", None) or [np.zeros_like(ids) for ids in case.ids]
    tokens = [Tokens(*both) for both in zip(case.ids, types, strict=True)]
    expected = case.logits if hasattr(case, "logits") else case.raw
    for count in (1, 3, 8):  # each shape comes again, with other texts
        batches = [tokens[start : start + count] for start in range(0, len(tokens), count)]
        rows = np.concatenate([engine.forward(Batch.pack(batch)) for batch in batches])
        if hasattr(case, "logits"):
            compare_logits(rows, expected, LOGITS_F32)
        else:
            compare(rows, expected, F32)
    assert 0 < emulation.recorded < emulation.replayed


def test_no_row_of_a_padded_batch_is_left_unwritten(built: Builder) -> None:
    """The kernels of tests fill rows that no sequence owns with NaN."""
    case = NAMED["bert-cls-normalize"]
    checkpoint = resolve(str(case.folder))
    engine: Any = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    batch = Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids[:3]])
    shape = Shape.of(batch, engine.info.max_seq_len)
    assert shape is not None
    padded = shape.pad(batch)
    assert padded.lengths[-1] > 0
    rows, vectors = engine.forward_tokens(padded)
    assert np.isfinite(vectors).all()
    assert np.isfinite(rows[:3]).all()


def test_without_a_graph_the_engine_goes_on(
    built: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", fail)
    case = NAMED["bert-cls-normalize"]
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    engine: Any = built(checkpoint, spec, engine="torch", dtype="float32").engine
    engine._graphs = Graphs(engine._model, spec.max_seq_len)
    caplog.clear()
    rows = [engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids))])) for ids in case.ids]
    compare(np.concatenate(rows), case.raw, F32)
    (record,) = caplog.records
    assert "CUDA graphs are not used" in record.getMessage()


@pytest.mark.parametrize("ends_with_an_error", [False, True])
def test_too_little_memory_for_a_graph_leaves_those_that_exist_in_use(
    ends_with_an_error: bool, built: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emulation, sizes = Emulation(), list[int]()

    def fail(compute: Callable[[], Tensor], shared: object) -> Any:
        sizes.append(len(compute()))
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:  # as `torch.cuda.graph` does at the end of its block
            if ends_with_an_error:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    case = NAMED["bert-cls-normalize"]
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    engine: Any = built(checkpoint, spec, engine="torch", dtype="float32").engine
    engine._graphs = Graphs(engine._model, spec.max_seq_len)
    tokens = [Tokens(ids, np.zeros_like(ids)) for ids in case.ids]
    caplog.clear()
    for capture in (emulation, fail, fail):  # one text with a graph, then three, for which there is none
        monkeypatch.setattr(graphs, "record", capture)
        size = 1 if capture is emulation else 3
        rows = np.concatenate([engine.forward(Batch.pack(tokens[:1])), engine.forward(Batch.pack(tokens[:size]))])
        compare(rows[1:], case.raw[:size], F32)
    assert (emulation.recorded, emulation.replayed, len(sizes)) == (1, 4, 1)
    (record,) = caplog.records
    assert record.getMessage().startswith("no more CUDA graphs are captured (slower for short texts): the GPU's memory")
    assert engine._parts.max_tokens > 1000, "a graph's memory says nothing about the batches"


def test_graphs_that_are_not_used_keep_no_memory(built: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    case = NAMED["bert-cls-normalize"]
    checkpoint = resolve(str(case.folder))
    engine: Any = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    engine._graphs = Graphs(engine._model, engine.info.max_seq_len)
    results = []

    def record(compute: Callable[[], Tensor], shared: object) -> tuple[Callable[[], None], Tensor, object]:
        replay, rows, pool = Emulation()(compute, shared)
        results.append(weakref.ref(rows))
        return replay, rows, pool

    for size, capture in ((1, record), (3, fail)):
        monkeypatch.setattr(graphs, "record", capture)
        engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids[:size]]))
    gc.collect()
    assert [reference() for reference in results] == [None]


class FakeCuda:
    """The parts of torch.cuda that `record` uses; every call is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captured: list[tuple[Any, Any]] = []
        self.is_capturing, self.device = False, 0
        self.current: Any = None  # the stream of the only thread that uses it
        self.fails = False
        for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(device=self.device, wait_stream=lambda other: None)

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=lambda: None, pool=lambda of=self.device: f"pool of GPU {of}")

    def current_stream(self) -> Any:
        return self.current or self.Stream()

    @contextmanager
    def stream(self, stream: Any) -> Any:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        assert not self.is_capturing  # torch: one capture at a time in a process
        self.is_capturing = True
        before, self.current = self.current, stream
        yield
        self.is_capturing = False
        if self.fails:  # as in torch 2.14, where `capture_end` then raises before the stream is restored
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.current = before
        self.captured.append((pool, stream))


def test_graphs_of_one_gpu_share_a_stream_and_a_pool_and_no_two_are_captured_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)

    def compute() -> Tensor:
        time.sleep(0.002 * cuda.is_capturing)  # another thread gets its turn
        return torch.zeros(1, 2)

    shared = []
    for cuda.device in (0, 1):
        shared.append(graphs.record(compute, None)[2])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: graphs.record(compute, shared[number % 2]), range(10)))
    first, second = (stream for _, stream in cuda.captured[:2])
    assert (first.device, second.device) == (0, 1)
    assert {(pool, id(stream)) for pool, stream in cuda.captured[2:]} == {
        ("pool of GPU 0", id(first)),
        ("pool of GPU 1", id(second)),
    }


def test_after_a_failed_capture_the_stream_that_the_callers_share_is_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise this caller's next batch is not ordered with those of the other caller, and rows may be mixed up."""
    cuda = FakeCuda(monkeypatch)
    cuda.current, cuda.fails = (shared := cuda.Stream()), True
    with pytest.raises(RuntimeError, match="previous error"):
        graphs.record(lambda: torch.zeros(1, 2), None)
    assert cuda.current is shared


def test_no_thread_waits_for_the_whole_gpu_or_frees_its_memory_while_a_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both would fail, and end the capture: a GPU that works would be taken for a lost one."""
    cuda, calls = FakeCuda(monkeypatch), list[bool]()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(cuda.is_capturing))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(cuda.is_capturing))
    with ThreadPoolExecutor(2) as pool:

        def compute() -> Tensor:
            if cuda.is_capturing:
                pool.submit(batches.check_device, RuntimeError("of another batch"))
                pool.submit(batches.free_cached_memory)
                time.sleep(0.02)
            return torch.zeros(1, 2)

        graphs.record(compute, None)
    assert calls == [False, False]
