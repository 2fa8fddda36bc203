"""A batch as TensorRT-LLM takes it: token ids only, into which token types and the pooling mask are packed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch


def pack_ids(batch: Batch, vocab_size: int) -> npt.NDArray[np.int32]:
    """i32[T]: id + vocab_size * (type + 2 * is_skipped); `classes.unpack_ids` is the inverse.

    Types are 0 or 1. A token is skipped if pooling leaves it out: the first `batch.skips` of each sequence, its prompt.
    """
    positions = np.arange(batch.num_tokens) - np.repeat(batch.cu_seqlens[:-1], batch.lengths)
    is_skipped = positions < np.repeat(batch.skips, batch.lengths)
    packed: npt.NDArray[np.int32] = batch.input_ids + vocab_size * (batch.type_ids + 2 * is_skipped)
    return packed.astype(np.int32, copy=False)
