"""Runs a batch in parts that fit the limits and the memory of a GPU, and notices a GPU that has failed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

from bei_core.engines.batch import Batch

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class DeviceLostError(BaseException):
    """A GPU, or a process that computes on one, has failed for good.

    It is no Exception, so that nobody takes it for an error of one batch: it ends the engine thread, and with it the
    server process, which its supervisor starts again.
    """


class Parts:
    """Splits batches by a limit of texts, and by a limit of tokens that is lowered when the memory is not enough."""

    def __init__(self, max_tokens: int, max_items: int, check: Callable[[Exception], None] | None = None) -> None:
        """`check` raises DeviceLostError if an error is the end of a device; the default is `check_device`."""
        self.max_tokens, self.max_items, self._check = max_tokens, max_items, check or check_device
        self._is_lowered = False

    def run(self, function: Callable[[Batch], ResultT], batch: Batch) -> list[ResultT]:
        """The result of each part of the batch. A part that does not fit the memory is divided and run again.

        Raises what `function` raises, torch.OutOfMemoryError for a single text, DeviceLostError.
        """
        ranges = list(split(batch, max_items=self.max_items, max_tokens=self.max_tokens))
        if len(ranges) > 1:
            return [result for start, stop in ranges for result in self.run(function, part(batch, start, stop))]
        try:
            return [function(batch)]
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        except RuntimeError as error:
            self._check(error)
            raise
        self._lower(batch)  # here, where the exception no longer holds the tensors of the failed run
        return self.run(function, batch)

    def _lower(self, batch: Batch) -> None:
        torch.cuda.empty_cache()
        self.max_tokens = min(self.max_tokens, batch.num_tokens // 2)
        if not self._is_lowered:
            log.warning(
                "the GPU's memory is not enough for a batch of %d tokens; from now on batches have at most %d. Set "
                "max_batch_tokens lower, or free memory of the GPU",
                batch.num_tokens,
                self.max_tokens,
            )
        self._is_lowered = True


def check_device(error: Exception) -> None:
    """Raises DeviceLostError if the GPU no longer works after an error: CUDA then fails at every call."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as repeated:
        raise DeviceLostError(f"the GPU failed and needs a new process: {repeated}") from error


def part(batch: Batch, start: int, stop: int) -> Batch:
    """The sequences from `start` to `stop` (excluded), as views of the batch's arrays."""
    first, last = batch.cu_seqlens[start], batch.cu_seqlens[stop]
    return Batch(
        input_ids=batch.input_ids[first:last],
        type_ids=batch.type_ids[first:last],
        cu_seqlens=batch.cu_seqlens[start : stop + 1] - first,
        max_len=int(batch.lengths[start:stop].max()),
        skips=batch.skips[start:stop],
    )


def even_parts(batch: Batch, count: int) -> list[Batch]:
    """The batch in up to `count` parts of about the same number of tokens, in order."""
    ends = np.searchsorted(batch.cu_seqlens, np.arange(1, count) * batch.num_tokens / count)
    edges = np.unique([0, *ends, len(batch)]).tolist()
    return [part(batch, start, stop) for start, stop in itertools.pairwise(edges)]


def split(batch: Batch, *, max_items: int, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of sequences, each within both limits; a sequence over `max_tokens` is alone."""
    start = 0
    for stop in range(1, len(batch) + 1):
        is_full = stop - start == max_items or stop == len(batch)
        if is_full or batch.cu_seqlens[stop + 1] - batch.cu_seqlens[start] > max_tokens:
            yield start, stop
            start = stop
