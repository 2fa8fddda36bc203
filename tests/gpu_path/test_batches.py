"""What the engines do when the memory of a GPU is not enough, and when a GPU fails."""

from __future__ import annotations

import asyncio
import logging
import sys

import numpy as np
import pytest
import torch

from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.torch.batches import DeviceLostError, Parts
from bei_core.errors import BeiError
from bei_core.metrics import Metrics
from bei_core.serving.runner import Runner
from bei_core.tasks import Rows, Tokens


def tokens_of(*lengths: int) -> list[Tokens]:
    return [
        Tokens(np.full(length, number, np.int32), np.zeros(length, np.int32)) for number, length in enumerate(lengths)
    ]


class SmallMemory:
    """Computes the first id of each text; batches of more tokens than fit run out of memory."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.sizes = capacity, list[int]()

    def __call__(self, batch: Batch) -> Rows:
        self.sizes.append(batch.num_tokens)
        if batch.num_tokens > self.capacity:
            raise torch.OutOfMemoryError(f"no memory for {batch.num_tokens} tokens")
        return batch.input_ids[batch.cu_seqlens[:-1]].astype(np.float32)[:, None]


def test_a_batch_that_does_not_fit_runs_in_parts_and_later_ones_are_smaller_from_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts, compute = Parts(sys.maxsize, sys.maxsize), SmallMemory(12)
    batch = Batch.pack(tokens_of(3, 9, 4, 2, 5, 1))
    with caplog.at_level(logging.WARNING):
        first = np.concatenate(parts.run(compute, batch))
        failed = sum(size > 12 for size in compute.sizes)
        compute.sizes.clear()
        second = np.concatenate(parts.run(compute, batch))
    assert first[:, 0].tolist() == second[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert failed == 1
    assert max(compute.sizes) <= 12
    (record,) = caplog.records
    assert "not enough for a batch of 24 tokens; from now on batches have at most 12" in record.getMessage()


def test_a_single_text_that_does_not_fit_fails_alone() -> None:
    parts = Parts(sys.maxsize, sys.maxsize)
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 9 tokens"):
        parts.run(SmallMemory(8), Batch.pack(tokens_of(9)))
    assert parts.run(SmallMemory(8), Batch.pack(tokens_of(8)))[0].tolist() == [[0]]


class LostCard:
    """An engine whose GPU fails at the first batch, and for ever."""

    info = EngineInfo("torch", "gpu", "bf16", row_width=1, max_seq_len=8, batch_tokens=8)

    def __init__(self) -> None:
        self.parts, self.calls = Parts(sys.maxsize, sys.maxsize), 0

    def forward(self, batch: Batch) -> Rows:
        return self.parts.run(self.fail, batch)[0]

    forward_tokens = forward

    def fail(self, batch: Batch) -> Rows:
        self.calls += 1
        raise RuntimeError("CUDA error: unspecified launch failure")

    def padding_share(self) -> float:
        return 0.0

    def num_shared_tokens(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing to free."""


def lose_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every call of CUDA fail, as after a launch failure."""

    def synchronize(device: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", synchronize)


async def test_a_lost_gpu_ends_the_engine_thread_so_that_the_server_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_card(monkeypatch)
    engine = LostCard()
    runner = Runner(engine, Metrics(), budget=8)  # type: ignore[arg-type] # its rows of tokens are not used
    runner.start()
    replies = await asyncio.gather(*(runner.submit(tokens_of(3, 3)) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(reply, BeiError) for reply in replies)
    assert runner.crashed.result(timeout=30) == "the engine thread failed (DeviceLostError); see the server's log"
    assert runner.broken is not None
    assert engine.calls == 1  # its halves are not tried


def test_a_gpu_that_still_answers_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        LostCard().forward(Batch.pack(tokens_of(3)))


def test_the_error_of_a_lost_gpu_says_what_has_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_card(monkeypatch)
    with pytest.raises(DeviceLostError, match="the GPU failed and needs a new process: CUDA error"):
        LostCard().forward(Batch.pack(tokens_of(3)))
