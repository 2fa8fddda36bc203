"""What a model class asks of a set of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bei_core.errors import UnsupportedModelError


@dataclass(frozen=True)
class AttentionSizes:
    """The attention of one layer."""

    hidden: int  # H
    num_heads: int  # N
    num_kv_heads: int  # K
    head_size: int  # S
    scale: float  # scores are query @ key * scale
    max_len: int
    bias: bool  # of the linear layers for queries, keys and values
    out_bias: bool
    causal: bool
    eps: float | None = None  # of the norms of queries and keys; None for a family without them
    offset: float = 0.0  # added to the weights of these norms
    window: int | None = None  # a query attends to keys less than this many positions away
    soft_cap: float | None = None  # scores become soft_cap * tanh(score / soft_cap)

    @property
    def part(self) -> str:
        """The part of its linear layers: "attention", with more words if one of them cannot be in fp8.

        TensorRT-LLM's attention has both in the same precision.
        """
        width, kv_width = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return "attention" if fits_fp8(self.hidden, width, width + 2 * kv_width) else "attention in bf16"

    @classmethod
    def of_encoder(cls, hidden: int, num_heads: int, max_len: int, **others: Any) -> AttentionSizes:
        """Attention to all tokens, with heads of the size H / N."""
        size = hidden // num_heads
        plain = {"scale": size**-0.5, "bias": True, "out_bias": True, "causal": False}
        return cls(hidden, num_heads, num_heads, size, max_len=max_len, **{**plain, **others})


@dataclass(frozen=True)
class Rank:
    """The share of a model that this process computes: one of `size` shares (tensor parallelism)."""

    number: int = 0
    size: int = 1

    def share(self, size: int, what: str) -> int:
        """The share of a size. Raises UnsupportedModelError if the size cannot be divided."""
        if size % self.size:
            raise UnsupportedModelError(f"{size} {what} cannot be divided among {self.size} GPUs")
        return size // self.size


class Kernels(Protocol):
    """Makes the layers of a model whose arithmetic is worth a kernel."""

    dtype: torch.dtype  # of the parameters and of token vectors between layers
    rank: Rank

    def linear(
        self, size_in: int, size_out: int, part: str, *, bias: bool, fused: str | None = None, split: str | None = None
    ) -> Any:
        """A module that maps [T, size_in] to [T, size_out], with `load_weights(layers)`.

        `part` ("attention", "mlp", "embeddings") is the part of the transformer that may be quantised; `fused` ("qkv",
        "gate_up") is set if the module is loaded from several layers of the checkpoint. If a model is divided among
        GPUs, each has the rows (`split` "out") or the columns ("in") of a share of the weight; None: all of it.
        """
        ...

    def attention(self, sizes: AttentionSizes, rope: Any, layer: int, score_bias: Any = None) -> Any:
        """A module with `load(weights, names, prefix)` and `forward(x, sequences)`, which maps [T, H] to [T, H].

        `rope` is a `Rope` or None. `score_bias` gives what is added to the scores of one sequence, [N, L, L] of its
        queries and keys [N, L, S]; None: nothing.
        """
        ...


def fits_fp8(*sizes: int) -> bool:
    """Whether a linear layer of these sizes can be in fp8: the matmuls of GPUs need multiples of 16."""
    return all(size % 16 == 0 for size in sizes)
