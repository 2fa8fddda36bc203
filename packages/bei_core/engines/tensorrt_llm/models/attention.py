"""Attention over packed sequences: TensorRT-LLM's kernels; plain torch for soft-capped scores and sliding windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.tensorrt_llm._compat import upstream
from bei_core.engines.tensorrt_llm.models.layers import LayerConfig, RmsNorm, Rope, Weights

Attention: Any = upstream("Attention")
PredefinedAttentionMask: Any = upstream("PredefinedAttentionMask")

_QUERY_BLOCK = 1024  # queries at a time, to limit the memory for the scores of a long sequence


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


class _NormAndRope(nn.Module):
    """Norms and rotary embedding of queries and keys."""

    def __init__(self, sizes: AttentionSizes, rope: Rope | None, dtype: Any) -> None:
        super().__init__()
        self.sizes, self.rope = sizes, rope
        self.q_norm, self.k_norm = (
            None if sizes.eps is None else RmsNorm(sizes.head_size, sizes.eps, dtype, offset=sizes.offset) for _ in "qk"
        )

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the norms, which only decoders have."""
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if norm is not None:
                norm.load(weights, prefix + name)

    def forward(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(query [T, N * S], key [T, K * S]), normalised and rotated."""
        parts = []
        for x, number, norm in (
            (query, self.sizes.num_heads, self.q_norm),
            (key, self.sizes.num_kv_heads, self.k_norm),
        ):
            heads = x.reshape(len(x), number, self.sizes.head_size)
            heads = heads if norm is None else norm(heads)
            heads = heads if self.rope is None else self.rope(heads, position_ids)
            parts.append(heads.reshape(len(x), -1))
        return parts[0], parts[1]


class PackedAttention(Attention):
    """TensorRT-LLM's attention, without a KV cache, with our norms and rotary embedding (see `apply_rope`)."""

    def __init__(self, sizes: AttentionSizes, rope: Rope | None, config: LayerConfig, layer: int) -> None:
        super().__init__(
            hidden_size=sizes.hidden,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            max_position_embeddings=sizes.max_len,
            bias=sizes.bias,
            pos_embd_params=None,
            layer_idx=layer,
            dtype=config.dtype,
            dense_bias=sizes.out_bias,
            config=config.for_attention(),
            q_scaling=sizes.head_size**-0.5 / sizes.scale,
        )
        self.norm_and_rope = _NormAndRope(sizes, rope, config.dtype)
        self.mask = PredefinedAttentionMask.CAUSAL if sizes.causal else PredefinedAttentionMask.FULL

    def apply_rope(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, position_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """TensorRT-LLM's hook between projections and attention: (query, key, value). `q` may hold all three, fused."""
        query, key, value = self.split_qkv(q, k, v)
        return (*self.norm_and_rope(query, key, position_ids), value)

    def attend(self, x: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        """[T, H]."""
        return self(position_ids=position_ids, hidden_states=x, attn_metadata=attn_metadata, attention_mask=self.mask)


class SegmentAttention(nn.Module):
    """Attention in plain torch, one sequence at a time, with soft-capped scores (Gemma 2) and sliding windows.

    Slower than a fused kernel, and its loop cannot be captured in a CUDA graph.
    """

    def __init__(self, sizes: AttentionSizes, rope: Rope | None, config: LayerConfig) -> None:
        super().__init__()
        self.sizes = sizes
        width, kv_width = sizes.num_heads * sizes.head_size, sizes.num_kv_heads * sizes.head_size
        self.split = (width, kv_width, kv_width)
        self.qkv_proj = config.linear(sizes.hidden, sum(self.split), "attention", bias=sizes.bias, fused="qkv")
        self.o_proj = config.linear(width, sizes.hidden, "attention", bias=sizes.out_bias)
        self.norm_and_rope = _NormAndRope(sizes, rope, config.dtype)

    def attend(self, x: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        """[T, H]."""
        query, key, value = self.qkv_proj(x).split(self.split, -1)
        query, key = self.norm_and_rope(query, key, position_ids)
        lengths = [int(length) for length in attn_metadata.seq_lens]  # `seq_lens` is on the host: no synchronisation
        sequences = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
        return self.o_proj(torch.cat([self._attend_in_sequence(*qkv) for qkv in sequences]))

    def _attend_in_sequence(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[L, N * S] of one sequence's query [L, N * S], key and value [L, K * S]."""
        sizes, length = self.sizes, len(query)
        queries = query.view(length, sizes.num_heads, sizes.head_size).transpose(0, 1)  # [N, L, S]
        times = sizes.num_heads // sizes.num_kv_heads
        keys, values = (
            x.view(length, sizes.num_kv_heads, sizes.head_size).transpose(0, 1).repeat_interleave(times, 0)
            for x in (key, value)
        )
        blocks = [
            self._block(block, keys, values, index * _QUERY_BLOCK)
            for index, block in enumerate(queries.split(_QUERY_BLOCK, 1))
        ]
        return torch.cat(blocks, 1).transpose(0, 1).reshape(length, -1)

    def _block(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """[N, Q, S] of queries [N, Q, S] that begin at token `start` of the sequence, keys and values [N, L, S]."""
        scores = (queries @ keys.transpose(1, 2)).float() * self.sizes.scale
        if self.sizes.soft_cap is not None:
            scores = self.sizes.soft_cap * torch.tanh(scores / self.sizes.soft_cap)
        scores = scores.masked_fill(~self._mask(scores, start), float("-inf"))
        return scores.softmax(-1).to(values.dtype) @ values

    def _mask(self, scores: Tensor, start: int) -> Tensor:
        """bool[Q, L]: whether a query may attend to a key."""
        query = torch.arange(start, start + scores.shape[1], device=scores.device)[:, None]
        distance = query - torch.arange(scores.shape[2], device=scores.device)
        allowed = distance >= 0 if self.sizes.causal else torch.ones_like(distance, dtype=torch.bool)
        return allowed if self.sizes.window is None else allowed & (distance.abs() < self.sizes.window)


def load_attention(attention: Any, weights: Weights, names: tuple[str, str, str, str], prefix: str) -> None:
    """Loads the layers of queries, keys, values and output (`names`), and the norms under `prefix`."""
    attention.qkv_proj.load_weights([weights.layer(name) for name in names[:3]])
    attention.o_proj.load_weights([weights.layer(names[3])])
    attention.norm_and_rope.load(weights, prefix)


def make_attention(
    sizes: AttentionSizes, rope: Rope | None, config: LayerConfig, layer: int
) -> PackedAttention | SegmentAttention:
    """TensorRT-LLM's attention, or ours for a layer with soft-capped scores or a window."""
    if sizes.soft_cap is not None or sizes.window is not None:
        return SegmentAttention(sizes, rope, config)
    return PackedAttention(sizes, rope, config, layer)
