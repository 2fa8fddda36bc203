"""A batch as TensorRT-LLM takes it: token ids only, into which token types and the pooling mask are packed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch


def pack_ids(batch: Batch, vocab_size: int) -> npt.NDArray[np.int32]:
    """i32[T]: id + vocab_size * (type + 2 * is_skipped); `models.classes.unpack_ids` is the inverse.

    Types are 0 or 1. A token is skipped if pooling leaves it out: the first `batch.skips` of each sequence, its prompt.
    """
    positions = np.arange(batch.num_tokens) - np.repeat(batch.cu_seqlens[:-1], batch.lengths)
    is_skipped = positions < np.repeat(batch.skips, batch.lengths)
    packed: npt.NDArray[np.int32] = batch.input_ids + vocab_size * (batch.type_ids + 2 * is_skipped)
    return packed.astype(np.int32, copy=False)


def split(batch: Batch, *, max_items: int, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of sequences, each within both limits; a sequence over `max_tokens` is alone."""
    start = 0
    for stop in range(1, len(batch) + 1):
        is_full = stop - start == max_items or stop == len(batch)
        if is_full or batch.cu_seqlens[stop + 1] - batch.cu_seqlens[start] > max_tokens:
            yield start, stop
            start = stop
