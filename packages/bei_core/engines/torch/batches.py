"""Runs a batch in parts that fit the limits and the memory of a GPU, and detects a GPU that has failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bei_core.engines.batch import Batch

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
ResultT = TypeVar("ResultT")

# Sizes of CUDA graphs: numbers of texts, of tokens, and of tokens of the longest text.
TEXTS = (1, 2, 4, 8)
TOKENS = (16, 32, 64, 128, 256, 512, 1024)
LONGEST = (32, 128, 512)

# Held while a graph is captured. Torch captures only one at a time in a process, and meanwhile other threads may launch
# kernels, but neither wait for the whole GPU nor free its cached memory: both would fail, and end the capture.
CAPTURING = threading.Lock()


class DeviceLostError(BaseException):
    """A GPU, or a process that computes on one, has failed and cannot recover.

    It is not a subclass of Exception, so code that handles the errors of one batch does not catch it. It ends the
    engine thread and then the server process, which its supervisor starts again.
    """


class PackedEngine:
    """The part of the engine contract that is the same for engines that pack sequences and share no prefixes."""

    def compute(self, batch: Batch, *, with_tokens: bool) -> list[tuple[Array, Array]]:
        """Returns (f32[B, D], f32[T, E]) of each part of the batch, in order; E is 0 without `with_tokens`."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Array:
        """Returns f32[B, D]; see `Engine.forward`."""
        return np.concatenate([rows for rows, _ in self.compute(batch, with_tokens=False)])

    def forward_tokens(self, batch: Batch) -> tuple[Array, Array]:
        """Returns f32[B, D] and f32[T, E]; see `Engine.forward_tokens`."""
        rows, tokens = zip(*self.compute(batch, with_tokens=True), strict=True)
        return np.concatenate(rows), np.concatenate(tokens)

    def padding_share(self) -> float:
        """Returns 0, because sequences are packed. The padding for CUDA graphs is not counted."""
        return 0.0

    def num_shared_tokens(self) -> int:
        """Returns 0: every token is computed."""
        return 0


class Parts:
    """Runs a batch in parts, each within a limit of texts and a limit of tokens.

    The limit of tokens becomes lower when the GPU does not have enough memory for a part.
    """

    def __init__(self, max_tokens: int, max_items: int, device: torch.device | None = None) -> None:
        """`device` is that of the engine, by default torch's current one."""
        self.max_tokens, self.max_items, self._device = max_tokens, max_items, device
        self._is_lowered = False

    def run(self, function: Callable[[Batch], ResultT], batch: Batch) -> list[ResultT]:
        """Returns the results of `function` for the parts of the batch, in order.

        A part that does not fit the memory is divided and run again. Raises the errors of `function`,
        torch.OutOfMemoryError if a single text does not fit the memory, and DeviceLostError.
        """
        parts = list(batch.split(max_items=self.max_items, max_tokens=self.max_tokens))
        if len(parts) > 1:
            return [result for each in parts for result in self.run(function, each)]
        try:
            return [function(batch)]
        except RuntimeError as error:
            check_device(error, self._device)
            if len(batch) == 1 or not isinstance(error, torch.OutOfMemoryError):
                raise
        self._lower(batch)  # here, where the exception no longer holds the tensors of the failed run
        return self.run(function, batch)

    def _lower(self, batch: Batch) -> None:
        free_cached_memory()
        self.max_tokens = min(self.max_tokens, batch.num_tokens // 2)
        if not self._is_lowered:
            log.warning(
                "the GPU's memory is not enough for a batch of %d tokens; from now on batches have at most %d. Set "
                "max_batch_tokens lower, or free memory of the GPU",
                batch.num_tokens,
                self.max_tokens,
            )
        self._is_lowered = True


def check_device(error: Exception, device: torch.device | None = None) -> None:
    """Checks that the GPU still works after `error`; after some errors, every call of CUDA fails.

    Raises DeviceLostError if it does not work.
    """
    if not torch.cuda.is_initialized():
        return
    try:
        with CAPTURING:
            torch.cuda.synchronize(device)
    except RuntimeError as repeated:
        raise DeviceLostError(f"the GPU failed and needs a new process: {repeated}") from error


def free_cached_memory() -> None:
    """Returns memory to the GPUs that torch caches. It stays cached if a failed capture has left torch in disorder."""
    with CAPTURING, suppress(RuntimeError):
        torch.cuda.empty_cache()
