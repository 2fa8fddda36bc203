"""Batches for TensorRT-LLM: packed ids, limits, threads, padding for CUDA graphs."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.tensorrt_llm import engine as engines
from bei_core.engines.tensorrt_llm._compat import upstream
from bei_core.engines.tensorrt_llm.classes import unpack_ids
from bei_core.engines.tensorrt_llm.engine import pack_ids
from bei_core.engines.torch.models.pooling import POOLINGS, pool
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.errors import EngineUnavailableError
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import CASES, Case
from tests.gpu_path.conftest import Builder

VOCABULARY = 50


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    texts = []
    for length in draw(st.lists(st.integers(1, 12), min_size=1, max_size=9)):
        ids = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length))
        types = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
        texts.append(Tokens(np.array(ids, np.int32), np.array(types, np.int32), draw(st.integers(0, length - 1))))
    return Batch.pack(texts)


@given(batches())
def test_unpack_ids_is_the_inverse_of_pack_ids(batch: Batch) -> None:
    ids, types, pooled = unpack_ids(pack_ids(batch, VOCABULARY), VOCABULARY)
    assert ids.numpy().tolist() == batch.input_ids.tolist()
    assert types.numpy().tolist() == batch.type_ids.tolist()
    expected = [at >= skip for length, skip in zip(batch.lengths, batch.skips, strict=True) for at in range(length)]
    assert pooled.numpy().tolist() == expected


def sequences_of(lengths: list[int], num_tokens: int) -> Sequences:
    """Sequences of these lengths among `num_tokens` tokens; those after the last belong to none."""
    positions = torch.cat([torch.arange(length) for length in [*lengths, num_tokens - sum(lengths)]])
    blank, pooled = torch.zeros(num_tokens, dtype=torch.int32), torch.ones(num_tokens, dtype=torch.bool)
    return Sequences(blank, blank, positions, pooled, torch.tensor(lengths, dtype=torch.int32), lengths)


@given(batches(), st.sampled_from(PoolingMode))
def test_a_sequence_is_pooled_as_if_alone_whatever_the_other_tokens_are(batch: Batch, mode: str) -> None:
    """The padding of a CUDA graph consists of empty sequences, and of tokens that no sequence owns; here they are NaN.

    So are, in turn, the tokens of every sequence but one.
    """
    generator = torch.Generator().manual_seed(batch.num_tokens)
    x = torch.randn(batch.num_tokens + 5, 3, generator=generator)
    for at, (start, stop) in enumerate(zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)):
        poisoned = torch.full_like(x, float("nan"))
        poisoned[start:stop] = x[start:stop]
        rows = pool(mode, poisoned, sequences_of([*batch.lengths.tolist(), 0, 0], len(x)))
        alone = pool(mode, x[start:stop], sequences_of([int(stop - start)], int(stop - start)))
        torch.testing.assert_close(rows[at], alone[0])


@given(batches(), st.sampled_from(("max", "mean", "mean_sqrt_len_tokens")))
def test_the_tokens_of_a_prompt_are_not_read(batch: Batch, mode: str) -> None:
    """Only these modes may leave out a prompt."""
    x = torch.randn(batch.num_tokens, 3, generator=torch.Generator().manual_seed(batch.num_tokens))
    sequences = sequences_of(batch.lengths.tolist(), len(x))
    pooled = sequences.position_ids.numpy() >= np.repeat(batch.skips, batch.lengths)
    expected = pool(mode, x, replace(sequences, pooled=torch.from_numpy(pooled)))
    x[torch.from_numpy(~pooled)] = float("nan")
    torch.testing.assert_close(pool(mode, x, replace(sequences, pooled=torch.from_numpy(pooled))), expected)


def test_every_pooling_mode_is_there() -> None:
    assert POOLINGS.keys() == set(PoolingMode)


def first_case() -> Case:
    return next(case for case in CASES if case.name == "bert-cls-normalize")


def test_a_batch_over_the_limits_is_split(built: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    case = first_case()
    checkpoint = resolve(str(case.folder))
    batch = Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids])
    whole = built(checkpoint, read_spec(checkpoint), dtype="float32").engine.forward(batch)
    monkeypatch.setattr(engines, "MAX_BATCH_SIZE", 3)
    monkeypatch.setattr(engines, "MAX_NUM_TOKENS", 70)
    engine = built(checkpoint, read_spec(checkpoint), dtype="float32").engine
    assert engine.info.batch_tokens == 70
    np.testing.assert_allclose(engine.forward(batch), whole, atol=2e-6)


def test_the_error_without_a_gpu_says_that_there_is_none(built: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(*_: object, **__: object) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system")

    monkeypatch.setattr(engines, "upstream", lambda name: no_device if name == "LLM" else upstream(name))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    checkpoint = resolve(str(first_case().folder))
    with pytest.raises(EngineUnavailableError, match="Found no NVIDIA driver on your system; CUDA finds no GPU here: "):
        built(checkpoint, read_spec(checkpoint), dtype="float32")


def test_one_thread_may_load_and_another_encode(built: Builder) -> None:
    """As in the service, which loads and warms up the model on one thread and runs it on the engine thread."""
    case = first_case()
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint), dtype="float32").engine
    batch = Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids])
    here = engine.forward(batch)
    there: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: there.append(engine.forward(batch)))
    thread.start()
    thread.join()
    assert np.array_equal(here, there[0])
    assert here.dtype == np.float32
    assert here.flags.writeable
