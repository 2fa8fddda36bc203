"""Graphs of fixed shape for lone texts, for every golden checkpoint, against the graph for any batch."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened
from bei_core.engines.openvino import engine as openvino_engine
from bei_core.engines.openvino import lone as lone_graphs
from bei_core.engines.openvino.compiled import Graphs, at_low_priority
from bei_core.engines.openvino.engine import compile_properties
from bei_core.engines.openvino.graph import ROWS, TOKENS, build_graph
from bei_core.engines.openvino.lone import least_padding, with_lone_graphs
from bei_core.models.spec import read_spec
from bei_core.serving.service import Service
from bei_core.tasks import Embed, Tokens
from tests.e2e.environments import ROOT
from tests.fakes import SAFETY_S
from tests.golden.cases import CASES, CLASSIFICATION_CASES, GROUP_CASES, GROUP_CLASSIFICATION_CASES
from tests.golden.engines import built

FOLDERS = sorted(
    {case.folder for case in (*CASES, *GROUP_CASES)}
    | {case.folder for case in (*CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)}
)
LENGTHS = (8, 24)
# Compiling takes a second for each: one folder of each family is always tested.
FIRST = set({folder.name.partition("-")[0]: folder for folder in FOLDERS}.values())
ALL = [pytest.param(folder, id=folder.name, marks=() if folder in FIRST else pytest.mark.long) for folder in FOLDERS]


def text_of(num_tokens: int, vocab_size: int, skip: int = 0) -> Tokens:
    ids = np.random.default_rng(num_tokens).integers(3, vocab_size, num_tokens).astype(np.int32)
    return Tokens(ids, np.zeros_like(ids), skip)


def opened_in(folder: Path) -> Opened:
    """The engine of the first golden checkpoint, in `folder` / "engine"."""
    checkpoint = resolve(str(CASES[0].folder))
    return built(checkpoint, read_spec(checkpoint), folder / "engine")


def compiled(graph: openvino.Model, lengths: Sequence[int] = ()) -> Graphs:
    return Graphs(openvino.Core().compile_model(graph, "CPU", compile_properties("f32")), 0, lengths)


@pytest.mark.parametrize("folder", ALL)
def test_a_lone_text_gets_what_it_gets_in_any_batch(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    spec = read_spec(checkpoint)
    graph = build_graph(spec, checkpoint)
    output = ROWS if ROWS in {port.any_name for port in graph.outputs} else TOKENS
    plain, lone = compiled(graph), compiled(with_lone_graphs(graph, output, LENGTHS), LENGTHS)
    texts = [text_of(size, spec.vocab_size) for size in (1, 7, 8, 13, 24)] + [text_of(9, spec.vocab_size, skip=2)]
    for batch in [Batch.pack([text]) for text in texts] + [Batch.pack(texts)]:
        wanted, found = plain.infer(batch, output), lone.infer(batch, output)
        np.testing.assert_allclose(found.rows, wanted.rows, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.tokens, wanted.tokens, rtol=1e-5, atol=1e-5)


def test_an_engine_that_gets_lone_texts_compiles_graphs_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_LONE_TEXTS", 3)
    engine = opened_in(tmp_path).engine
    batch = Batch.pack([text_of(5, 100)])
    before, *_ = [engine.forward(batch) for _ in range(3)]
    assert engine.padding_share() == 1 - 5 / 16  # one row of 16
    engine._preparing.join()  # type: ignore[attr-defined]
    np.testing.assert_allclose(engine.forward(batch), before, rtol=1e-5, atol=1e-5)
    assert engine.padding_share() == 0  # it has a graph of its own length
    engine.forward(Batch.pack([text_of(17, 100)]))
    assert engine.padding_share() == 1 - 17 / 24  # the next length
    np.testing.assert_allclose(engine.forward_tokens(batch)[0], before, rtol=1e-5, atol=1e-5)
    engine.close()


def test_a_busy_server_compiles_nothing_until_most_texts_come_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_LONE_TEXTS", 5)
    engine = opened_in(tmp_path).engine
    lone, several = Batch.pack([text_of(5, 100)]), Batch.pack([text_of(5, 100), text_of(6, 100)])
    for batch in [lone, lone, lone, lone, several] * 3:
        engine.forward(batch)
        engine.forward(several)
    assert engine._preparing is None  # type: ignore[attr-defined]
    for batch in [lone, lone, lone, lone, several] * 2:  # each round counts one more than it takes back
        engine.forward(batch)
    assert engine._preparing is not None  # type: ignore[attr-defined]
    engine.close()


def test_long_texts_that_come_alone_compile_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "_LONE_TEXTS", 1)
    monkeypatch.setattr(openvino_engine, "MAX_LENGTH", 8)
    engine = opened_in(tmp_path).engine
    engine.forward(Batch.pack([text_of(9, 100)]))
    assert engine._preparing is None  # type: ignore[attr-defined]
    engine.forward(Batch.pack([text_of(8, 100)]))
    assert engine._preparing is not None  # type: ignore[attr-defined]
    engine.close()


async def test_the_warm_up_and_probes_of_a_server_are_no_lone_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_LONE_TEXTS", 2)
    monkeypatch.setattr("bei_core.serving.service._PROVEN_S", -1.0)  # every health check sends a probe
    opened = opened_in(tmp_path)
    service = Service(opened, Settings.load({}, {}))
    service.start()
    for _ in range(3):
        await service.check()
    await service.run(Embed(["one text"]))
    assert opened.engine._preparing is None  # type: ignore[attr-defined]
    await service.run(Embed(["another text"]))
    assert opened.engine._preparing is not None  # type: ignore[attr-defined]
    service.close(SAFETY_S)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own elsewhere")
@pytest.mark.parametrize("is_refused", [False, True])
def test_graphs_are_compiled_at_the_lowest_priority(is_refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    if is_refused:
        monkeypatch.setattr(os, "sched_setscheduler", refuse)
    policy, nice = at_low_priority(lambda: (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)))
    assert policy == (os.SCHED_OTHER if is_refused else os.SCHED_IDLE)
    assert not is_refused or nice == 19


class WatchedQueue(SimpleQueue[Graphs]):
    """Records at each `put` whether an object is still alive."""

    def __init__(self, watched: weakref.ref[Graphs]) -> None:
        self.watched, self.was_alive = watched, list[bool]()

    def put(self, item: Graphs, *_: object) -> None:
        self.was_alive.append(self.watched() is not None)
        super().put(item)


def test_the_next_batch_does_not_wait_until_the_replaced_graphs_are_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_LONE_TEXTS", 1)
    engine = opened_in(tmp_path).engine
    first = engine._idle.get()  # type: ignore[attr-defined]
    idle = engine._idle = WatchedQueue(weakref.ref(first))  # type: ignore[attr-defined]
    idle.put(first)
    del first
    engine.forward(Batch.pack([text_of(5, 100)]))
    engine._preparing.join()  # type: ignore[attr-defined]
    assert idle.was_alive == [True] * 3  # at the start, after the batch, and when the new graphs came
    assert idle.watched() is None
    engine.close()


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
@pytest.mark.parametrize("when", ["before", "meanwhile", "deleted"])
def test_an_engine_whose_folder_was_replaced_goes_on_with_the_graphs_that_it_has(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino_engine, "_LONE_TEXTS", 2)
    engine = opened_in(tmp_path).engine
    batch, file = Batch.pack([text_of(5, 100)]), tmp_path / "engine" / name
    before = engine.forward(batch)

    def replace_file() -> None:
        other = file.with_suffix(".new")
        other.write_bytes(file.read_bytes())
        other.replace(file)

    def compile_meanwhile(work: Callable[[], object]) -> object:
        replace_file()
        return work()

    if when == "meanwhile":
        monkeypatch.setattr(openvino_engine, "at_low_priority", compile_meanwhile)
    elif when == "before":
        replace_file()
    else:
        file.unlink()
    engine.forward(batch)
    engine._preparing.join()  # type: ignore[attr-defined]
    assert np.array_equal(engine.forward(batch), before)
    assert engine.padding_share() == 1 - 5 / 16  # the graph for any batch
    (line,) = [record.getMessage() for record in caplog.records if "single texts" in record.getMessage()]
    assert line.endswith(f"{tmp_path / 'engine'} was replaced or deleted; start the server again to serve it")
    engine.close()


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened
from bei_core.engines.openvino import engine as openvino_engine
from bei_core.models.spec import read_spec
from tests.golden.cases import CASES
from tests.golden.engines import built
from tests.golden.test_lone import text_of
openvino_engine._LONE_TEXTS = 3
checkpoint = resolve(str(CASES[0].folder))
engine = built(checkpoint, read_spec(checkpoint), Path(sys.argv[1])).engine
for _ in range(3):
    engine.forward(Batch.pack([text_of(5, 100)]))
engine._preparing.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_is_handled_after_another_thread_has_replaced_the_graphs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "engine")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize(
    ("max_bytes", "max_seq_len", "seen", "lengths"),
    [
        (1 << 40, 30, [], (8, 16, 24)),
        (1 << 40, 30, [9, 10, 10], (8, 9, 10, 16, 24)),
        (1 << 40, 30, [30], (8, 16, 24, 30)),
        (0, 512, [9], ()),
        (1 << 40, 7, [5], ()),
    ],
)
def test_graphs_for_lone_texts_are_within_the_model_and_the_memory(
    max_bytes: int, max_seq_len: int, seen: list[int], lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lone_graphs, "_MAX_BYTES", max_bytes)
    checkpoint = resolve(str(CASES[0].folder))
    graph = build_graph(read_spec(checkpoint), checkpoint)
    assert lone_graphs.lengths_for(graph, max_seq_len, seen, shared=True) == lengths


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 4))
def test_no_other_lengths_need_less_padding(seen: list[int], count: int) -> None:
    lengths = least_padding(seen, count)
    assert len(lengths) <= count
    sizes = sorted(set(seen))
    others = [(*few, sizes[-1]) for size in range(count) for few in combinations(sizes[:-1], size)]
    assert padded(seen, lengths) == min(padded(seen, other) for other in others)


def padded(seen: Sequence[int], lengths: Sequence[int]) -> int:
    """The tokens of texts that are each padded to the next of the lengths."""
    return sum(min(length for length in lengths if length >= size) for size in seen)
