"""`Sequences`, a packed batch on the device, which is an input of all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from bei_core.engines.batch import Batch

_BLOCK = 128  # tokens of a block of FlexAttention's mask

# Layers and batches of this process by their handles; it keeps none alive.
_OBJECTS: WeakValueDictionary[int, Any] = WeakValueDictionary()


def handle_of(value: object) -> Tensor:
    """Returns the handle of an object, i64[] on the host, because operators of torch only take tensors."""
    _OBJECTS[id(value)] = value
    return torch.tensor(id(value), device="cpu")


def object_of(handle: Tensor) -> Any:
    """Returns the object of a handle of `handle_of`, which must still exist."""
    return _OBJECTS[int(handle)]


@dataclass
class Sequences:
    """`B` consecutive sequences among `T` tokens.

    Tokens after the last sequence pad the batch to the shape of a CUDA graph. They belong to no sequence, and their
    vectors may be anything, also NaN: the layers select the tokens that they use and never multiply others by 0.
    """

    ids: Tensor  # i32[T]
    type_ids: Tensor  # i32[T]
    position_ids: Tensor  # i32[T], from 0 in each sequence
    pooled: Tensor  # bool[T], false for the tokens of a prompt that pooling leaves out
    lengths: Tensor  # i32[B]
    host_lengths: Sequence[int] | Tensor  # the same, on the host
    attn_metadata: Any = None  # TensorRT-LLM's own description of the batch
    block_masks: dict[tuple[bool, int | None], Any] = field(default_factory=dict)
    longest: int = 0  # a number of tokens that no sequence exceeds; 0: use the largest of `host_lengths`

    def __post_init__(self) -> None:
        self.handle = handle_of(self)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """i32[B + 1]: cumulative lengths from 0."""
        return torch.nn.functional.pad(torch.cumsum(self.lengths, 0, dtype=torch.int32), (1, 0))

    @cached_property
    def max_len(self) -> int:
        """A number of tokens that no sequence exceeds."""
        return self.longest or max(int(length) for length in self.host_lengths)

    @classmethod
    def of(cls, flat: Tensor, num_tokens: int, host_lengths: Sequence[int] | Tensor, longest: int = 0) -> Sequences:
        """Returns the sequences of an array i32[4 T + B] of `flatten`; `num_tokens` is T."""
        sizes = [num_tokens] * 4 + [len(flat) - 4 * num_tokens]
        ids, type_ids, position_ids, pooled, lengths = flat.split(sizes)
        return cls(ids, type_ids, position_ids, pooled.bool(), lengths, host_lengths, longest=longest)

    def first(self) -> Tensor:
        """Returns i64[B]: the index of each sequence's first token."""
        return self._clamp(self.cu_seqlens[:-1])

    def last(self, real: Tensor | None = None) -> Tensor:
        """Returns i64[B]: the index of each sequence's last token.

        With `real` bool[T], it is the last token for which `real` is true, or the first token if there is none.
        """
        if real is None:
            return self._clamp(self.cu_seqlens[1:] - 1)
        index = torch.arange(len(real), device=real.device, dtype=torch.float32)
        found = self.reduce(torch.where(real, index, -1)[:, None], "max")[:, 0]
        return torch.where(found < 0, self.first(), found.long())

    def count_up(self, counted: Tensor) -> Tensor:
        """Returns i32[T]: how many tokens of its sequence are counted, up to and with each token.

        It is 0 for a token that is not `counted`, bool[T], and at most `position_ids` + 1 for any token.
        """
        ones = counted.int()
        before = torch.cumsum(ones, 0, dtype=torch.int32) - ones
        starts = torch.arange(len(ones), device=ones.device, dtype=torch.int32) - self.position_ids
        return (before - before[starts.clamp(min=0)] + 1) * ones

    def reduce(self, x: Tensor, by: str) -> Tensor:
        """Returns f32[B, H]: the "sum" or "max" over the rows of each sequence, for x f32[T, H].

        Rows of tokens that belong to no sequence are never read. The result is deterministic, and the host does not
        wait for the device.
        """
        return torch.segment_reduce(x, by, lengths=self.lengths, axis=0, unsafe=True)

    def map(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Calls `function` with each sequence's rows of the tensors; returns the results in the first tensor's shape.

        Rows of tokens that belong to no sequence are NaN.
        """
        out, start = torch.full_like(tensors[0], float("nan")), 0
        for length in self.host_lengths:
            rows = slice(start, start := start + int(length))
            if rows.start < rows.stop:
                out[rows] = function(*(tensor[rows] for tensor in tensors))
        return out

    def block_mask(self, *, causal: bool, window: int | None) -> Any:
        """Returns FlexAttention's mask, by which a query attends to keys of its own sequence only.

        It is made once for a batch and used by all layers with the same `causal` and `window`.
        """
        if (causal, window) not in self.block_masks:
            self.block_masks[causal, window] = self._make_block_mask(causal, window)
        return self.block_masks[causal, window]

    def _make_block_mask(self, causal: bool, window: int | None) -> Any:
        """Returns the mask from the sequences of the first and last token of each block.

        The general way, `create_block_mask`, would compute all T x T pairs, or compile a kernel for that.
        """
        from torch.nn.attention.flex_attention import BlockMask

        total, positions = len(self.ids), self.position_ids
        index = torch.arange(total, device=positions.device, dtype=torch.int32)
        document = torch.searchsorted(self.cu_seqlens[1:], index, right=True)
        # Not a number of Python, which torch.compile takes for dynamic; it cannot always lower that.
        width = None if window is None else torch.full((), window, device=positions.device)

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (document[q] == document[k]) & is_seen(positions[q] - positions[k], causal=causal, window=width)

        ends = index[::_BLOCK] + _BLOCK - 1
        first, last = document[::_BLOCK], document[ends.clamp(max=total - 1)]
        blocks = index[: len(ends)]
        distance = blocks[:, None] - blocks  # of a block of queries to a block of keys, in blocks
        nearest, farthest = (distance.abs() - 1) * _BLOCK + 1, (distance.abs() + 1) * _BLOCK - 1  # in tokens
        some = (first[:, None] <= last) & (first <= last[:, None])  # has pairs of the same sequence
        full = (first[:, None] == last) & (first == last[:, None])  # has no other pairs
        full &= (ends < total) & (ends < total)[:, None]
        if causal:
            some, full = some & (distance >= 0), full & (distance > 0)
        if window is not None:
            some, full = some & (nearest < window), full & (farthest < window)
        lists = (x for mask in (some & ~full, full) for x in _listed(mask[None, None]))
        return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=_BLOCK, mask_mod=allowed, seq_lengths=(total, total))

    def _clamp(self, index: Tensor) -> Tensor:
        return index.long().clamp(0, len(self.pooled) - 1)


def _listed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (number of true values in each row of bool[..., n, n], their columns and then the others), both i32."""
    values = mask.int()
    return values.sum(-1, dtype=torch.int32), values.argsort(dim=-1, descending=True, stable=True).int()


def is_seen(distance: Tensor, *, causal: bool, window: Tensor | int | None) -> Tensor:
    """Returns bool[...]: whether a query attends to a key of its sequence, by its position minus that of the key."""
    seen = (distance >= 0) | (not causal)
    return seen if window is None else seen & (distance.abs() < window)


def upload(batch: Batch, device: torch.device) -> Tensor:
    """Returns the array of `flatten` on a device; the host does not wait for the copy to a GPU."""
    return flatten(batch, pinned=device.type == "cuda").to(device, non_blocking=True)


def flatten(batch: Batch, *, pinned: bool = False) -> Tensor:
    """Returns i32[4 T + B] on the host: ids, types, positions, the pooling mask and lengths of a batch.

    Torch gives `pinned` memory to another tensor only when no copy from it to a GPU is running any more.
    """
    lengths = batch.lengths
    positions = np.arange(batch.num_tokens, dtype=np.int32) - np.repeat(batch.cu_seqlens[:-1], lengths)
    pooled = (positions >= np.repeat(batch.skips, lengths)).astype(np.int32)
    flat = torch.empty(4 * batch.num_tokens + len(batch), dtype=torch.int32, pin_memory=pinned)
    np.concatenate((batch.input_ids, batch.type_ids, positions, pooled, lengths), out=flat.numpy())
    return flat
