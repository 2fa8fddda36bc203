"""A batch as TensorRT-LLM takes it: a list of ids a text, in which each id carries its token's other facts too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch


def pack_ids(batch: Batch, vocab_size: int) -> npt.NDArray[np.int32]:
    """i32[T]: id + vocab_size * (type + 2 * left out of pooling); `models.classes.unpack_ids` is the way back.

    BERT's types are 0 and 1; of a prompt that pooling leaves out the first tokens of each text are marked.
    """
    at = np.arange(batch.num_tokens) - np.repeat(batch.cu_seqlens[:-1], batch.lengths)
    left_out = at < np.repeat(batch.skips, batch.lengths)
    packed: npt.NDArray[np.int32] = batch.input_ids + vocab_size * (batch.type_ids + 2 * left_out)
    return packed.astype(np.int32, copy=False)


def split(batch: Batch, *, max_items: int, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of texts, each within both limits; a text over `max_tokens` is alone."""
    start = 0
    for stop in range(1, len(batch) + 1):
        over = stop - start == max_items or stop == len(batch)
        over = over or batch.cu_seqlens[stop + 1] - batch.cu_seqlens[start] > max_tokens
        if over:
            yield start, stop
            start = stop
