"""Linear layers and attention in plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.kernels.varlen import ScoreBias, attend
from bei_core.engines.torch.models.layers import RmsNorm, Rope, Weights, empty, fill
from bei_core.engines.torch.models.sequences import Sequences


class TorchKernels:
    """The set of kernels that needs nothing but torch."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def linear(self, size_in: int, size_out: int, part: str, *, bias: bool, fused: str | None = None) -> Any:
        """See `Kernels.linear`."""
        return Linear(size_in, size_out, self.dtype, bias=bias)

    def attention(self, sizes: AttentionSizes, rope: Any, layer: int, score_bias: Any = None) -> Any:
        """See `Kernels.attention`."""
        return Attention(sizes, rope, self, score_bias)


class Linear(nn.Module):
    """x Wᵀ + b. A bias that the checkpoint has is used also if `bias` does not say that there is one."""

    def __init__(self, size_in: int, size_out: int, dtype: torch.dtype, *, bias: bool) -> None:
        super().__init__()
        self.weight = empty(size_out, size_in, dtype=dtype)
        self.bias = empty(size_out, dtype=dtype) if bias else None

    def load_weights(self, layers: Sequence[Mapping[str, Tensor]]) -> None:
        """Loads one layer of a checkpoint, or several, one below the other. Raises CheckpointError."""
        names = [name for name in ("weight", "bias") if name in layers[0]]
        joined = {name: torch.cat([layer[name] for layer in layers]) for name in names}
        if self.bias is None and "bias" in joined:
            self.bias = empty(len(self.weight), dtype=self.weight.dtype, device=self.weight.device)
        fill(self.weight, joined, "weight", "linear layer")
        if self.bias is not None:
            fill(self.bias, joined, "bias", "linear layer")

    def forward(self, x: Tensor) -> Tensor:
        """[T, size_out] of [T, size_in]."""
        return F.linear(x, self.weight, self.bias)


class NormAndRope(nn.Module):
    """Norms and rotary embedding of queries and keys."""

    def __init__(self, sizes: AttentionSizes, rope: Rope | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.rope = rope
        self.q_norm, self.k_norm = (
            None if sizes.eps is None else RmsNorm(sizes.head_size, sizes.eps, dtype, offset=sizes.offset) for _ in "qk"
        )

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing, as in BERT."""
        return self.rope is None and self.q_norm is None

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the norms, which only decoders have."""
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if norm is not None:
                norm.load(weights, prefix + name)

    def forward(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [T, N, S] and keys [T, K, S], normalised and rotated."""
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rope is not None:
            query, key = self.rope(query, position_ids), self.rope(key, position_ids)
        return query, key


def load_attention(attention: Any, weights: Weights, names: Sequence[str], prefix: str) -> None:
    """Loads `qkv_proj` and `o_proj` from the layers `names`, and the norms under `prefix`.

    Query, key and value are three layers, or one with three equal parts, which TensorRT-LLM also wants as three.
    """
    qkv = [weights.layer(name) for name in names[:-1]]
    if len(qkv) == 1:
        split = {part: tensor[...].chunk(3) for part, tensor in qkv[0].items()}
        qkv = [{part: chunks[number] for part, chunks in split.items()} for number in range(3)]
    attention.qkv_proj.load_weights(qkv)
    attention.o_proj.load_weights([weights.layer(names[-1])])
    attention.norm_and_rope.load(weights, prefix)


class Attention(nn.Module):
    """Attention of a packed batch with projections of any set of kernels."""

    def __init__(
        self, sizes: AttentionSizes, rope: Rope | None, kernels: Kernels, score_bias: ScoreBias | None
    ) -> None:
        super().__init__()
        self.sizes, self.score_bias = sizes, score_bias
        width, kv_width = sizes.num_heads * sizes.head_size, sizes.num_kv_heads * sizes.head_size
        self.widths = (width, kv_width, kv_width)
        self.qkv_proj = kernels.linear(sizes.hidden, sum(self.widths), "attention", bias=sizes.bias, fused="qkv")
        self.o_proj = kernels.linear(width, sizes.hidden, "attention", bias=sizes.out_bias)
        self.norm_and_rope = NormAndRope(sizes, rope, kernels.dtype)

    load = load_attention

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """[T, H] of [T, H]."""
        parts = self.qkv_proj(x).split(self.widths, -1)
        query, key, value = (part.unflatten(-1, (-1, self.sizes.head_size)) for part in parts)
        query, key = self.norm_and_rope(query, key, sequences.position_ids)
        return self.o_proj(attend(query, key, value, sequences, self.sizes, self.score_bias).flatten(1))
