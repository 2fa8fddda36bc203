"""Packs token ids, token types and the pooling mask of a batch into one array, because TensorRT-LLM only takes ids."""

from __future__ import annotations

from torch import Tensor

from bei_core.engines.batch import Batch
from bei_core.engines.torch.models.sequences import flatten


def pack_ids(batch: Batch, vocab_size: int) -> Tensor:
    """Returns i32[T]: id + vocab_size * (type + 2 * is_skipped), which `unpack_ids` unpacks.

    Token types must be 0 or 1. `is_skipped` is 1 for a token that pooling leaves out: the first `batch.skips` tokens of
    each sequence, which are its prompt.
    """
    ids, type_ids, _, pooled = flatten(batch)[: 4 * batch.num_tokens].view(4, -1)
    return ids + vocab_size * (type_ids + 2 * (1 - pooled))


def unpack_ids(packed: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (ids i32[T], types i32[T], pooling mask bool[T]), from the i32[T] that `pack_ids` made."""
    flags = packed // vocab_size
    return packed % vocab_size, flags % 2, flags < 2
