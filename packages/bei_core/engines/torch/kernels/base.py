"""What a set of kernels is asked for: the sizes of attention, and the share of a model that a process computes."""

from __future__ import annotations

from dataclasses import dataclass

from bei_core.errors import UnsupportedModelError


@dataclass(frozen=True)
class AttentionSizes:
    """Sizes and options of the attention of one layer."""

    hidden: int  # H
    num_heads: int  # N
    num_kv_heads: int  # K
    head_size: int  # S
    scale: float  # scores are query @ key * scale
    bias: bool  # of the linear layers for queries, keys and values
    out_bias: bool
    causal: bool
    eps: float | None = None  # of the norms of queries and keys; None for a family without them
    offset: float = 0.0  # added to the weights of these norms
    window: int | None = None  # a query attends to keys less than this many positions away
    soft_cap: float | None = None  # scores become soft_cap * tanh(score / soft_cap)

    @property
    def is_plain(self) -> bool:
        """Whether queries attend to all keys of their sequence (or all before them), with scores as they are."""
        return self.window is None and self.soft_cap is None

    @property
    def part(self) -> str:
        """The argument `part` for its linear layers: "attention", or "attention in bf16" if fp8 cannot be used.

        If fp8 does not support the sizes of one of the two layers, both are in bf16, because TensorRT-LLM's attention
        needs both in the same precision.
        """
        width, kv_width = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return "attention" if fits_fp8(self.hidden, width, width + 2 * kv_width) else "attention in bf16"


@dataclass(frozen=True)
class Rank:
    """The share of a model that this process computes: one of `size` shares (tensor parallelism)."""

    number: int = 0
    size: int = 1

    def share(self, size: int, what: str) -> int:
        """Returns the share of `size`. Raises UnsupportedModelError if it cannot be divided; `what` names it there."""
        if size % self.size:
            raise UnsupportedModelError(f"{size} {what} cannot be divided among {self.size} GPUs")
        return size // self.size


def fits_fp8(*sizes: int) -> bool:
    """Whether a linear layer of these sizes can be in fp8; the fp8 matmuls of GPUs need multiples of 16."""
    return all(size % 16 == 0 for size in sizes)
