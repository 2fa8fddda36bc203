"""Attention over packed texts: TensorRT-LLM's kernels, or our own where those are not held to do what a model asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.tensorrt_llm._compat import upstream
from bei_core.engines.tensorrt_llm.models.layers import Config, RmsNorm, Rotation, Weights

Attention: Any = upstream("Attention")
PredefinedAttentionMask: Any = upstream("PredefinedAttentionMask")

_QUERIES = 1024  # of a long text at a time, so that its scores need not all be in memory


@dataclass(frozen=True)
class Sizes:
    """One layer's attention."""

    hidden: int
    queries: int  # heads
    keys: int  # heads of keys and of values
    head: int  # size of a head
    scale: float  # of products of queries and keys
    max_len: int
    bias: bool  # of the layers that give queries, keys and values
    out_bias: bool
    causal: bool
    eps: float | None = None  # of the norms of queries and keys, where the family has them
    offset: float = 0.0  # of those norms' weights
    window: int | None = None
    soft_cap: float | None = None


class _Prepared(nn.Module):
    """Norms and rotation of queries and keys."""

    def __init__(self, sizes: Sizes, rotation: Rotation | None, dtype: Any) -> None:
        super().__init__()
        self.sizes, self.rotation = sizes, rotation
        self.q_norm, self.k_norm = (
            None if sizes.eps is None else RmsNorm(sizes.head, sizes.eps, dtype, offset=sizes.offset) for _ in "qk"
        )

    def load(self, weights: Weights, prefix: str) -> None:
        """Takes the norms' tensors, under decoders' names."""
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if norm is not None:
                norm.load(weights, prefix + name)

    def forward(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [T, N * D] and keys [T, K * D] as they meet."""
        parts = []
        for x, number, norm in ((query, self.sizes.queries, self.q_norm), (key, self.sizes.keys, self.k_norm)):
            heads = x.reshape(len(x), number, self.sizes.head)
            heads = heads if norm is None else norm(heads)
            heads = heads if self.rotation is None else self.rotation(heads, position_ids)
            parts.append(heads.reshape(len(x), -1))
        return parts[0], parts[1]


class PackedAttention(Attention):
    """TensorRT-LLM's attention without a KV cache; norms and rotation are ours, by the hook that it has for them."""

    def __init__(self, sizes: Sizes, rotation: Rotation | None, config: Config, layer: int) -> None:
        super().__init__(
            hidden_size=sizes.hidden,
            num_attention_heads=sizes.queries,
            num_key_value_heads=sizes.keys,
            max_position_embeddings=sizes.max_len,
            bias=sizes.bias,
            pos_embd_params=None,
            layer_idx=layer,
            dtype=config.dtype,
            dense_bias=sizes.out_bias,
            config=config.for_attention(),
            q_scaling=sizes.head**-0.5 / sizes.scale,
        )
        self.prepared = _Prepared(sizes, rotation, config.dtype)
        self.mask = PredefinedAttentionMask.CAUSAL if sizes.causal else PredefinedAttentionMask.FULL

    def apply_rope(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, position_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; `q` alone holds all three where the others are None."""
        query, key, value = self.split_qkv(q, k, v)
        return (*self.prepared(query, key, position_ids), value)

    def load(self, weights: Weights, names: tuple[str, str, str, str], prefix: str) -> None:
        """Takes the tensors of queries, keys, values and of the output, by these names."""
        self.qkv_proj.load_weights([weights.of(name) for name in names[:3]])
        self.o_proj.load_weights([weights.of(names[3])])
        self.prepared.load(weights, prefix)

    def attend(self, x: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        """[T, H]."""
        return self(position_ids=position_ids, hidden_states=x, attn_metadata=attn_metadata, attention_mask=self.mask)


class SegmentAttention(nn.Module):
    """Attention in plain torch, text by text: soft-capped scores (Gemma 2) and windows, to the definition.

    Slower than a fused kernel, and no CUDA graph can hold its loop.
    """

    def __init__(self, sizes: Sizes, rotation: Rotation | None, config: Config) -> None:
        super().__init__()
        self.sizes = sizes
        width, keys = sizes.queries * sizes.head, sizes.keys * sizes.head
        self.split = (width, keys, keys)
        self.qkv_proj = config.linear(sizes.hidden, width + 2 * keys, "attention", bias=sizes.bias, fused="qkv")
        self.o_proj = config.linear(width, sizes.hidden, "attention", bias=sizes.out_bias)
        self.prepared = _Prepared(sizes, rotation, config.dtype)

    def load(self, weights: Weights, names: tuple[str, str, str, str], prefix: str) -> None:
        """Takes the tensors of queries, keys, values and of the output, by these names."""
        self.qkv_proj.load_weights([weights.of(name) for name in names[:3]])
        self.o_proj.load_weights([weights.of(names[3])])
        self.prepared.load(weights, prefix)

    def attend(self, x: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        """[T, H]."""
        query, key, value = self.qkv_proj(x).split(self.split, -1)
        query, key = self.prepared(query, key, position_ids)
        lengths = [int(length) for length in attn_metadata.seq_lens]  # on the host already
        mixed = [
            self._text(*parts) for parts in zip(*(part.split(lengths) for part in (query, key, value)), strict=True)
        ]
        return self.o_proj(torch.cat(mixed))

    def _text(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[L, N * D] of one text's queries [L, N * D], keys and values [L, K * D]."""
        sizes, length = self.sizes, len(query)
        queries = query.view(length, sizes.queries, sizes.head).transpose(0, 1)  # [N, L, D]
        keys, values = (
            part.view(length, sizes.keys, sizes.head).transpose(0, 1).repeat_interleave(sizes.queries // sizes.keys, 0)
            for part in (key, value)
        )
        blocks = [
            self._block(block, keys, values, at * _QUERIES) for at, block in enumerate(queries.split(_QUERIES, 1))
        ]
        return torch.cat(blocks, 1).transpose(0, 1).reshape(length, -1)

    def _block(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """[N, Q, D] of queries [N, Q, D], the first of which is the text's token `start`."""
        scores = (queries @ keys.transpose(1, 2)).float() * self.sizes.scale
        if self.sizes.soft_cap is not None:
            scores = self.sizes.soft_cap * torch.tanh(scores / self.sizes.soft_cap)
        scores = scores.masked_fill(~self._sees(scores, start), float("-inf"))
        return scores.softmax(-1).to(values.dtype) @ values

    def _sees(self, scores: Tensor, start: int) -> Tensor:
        """bool[Q, L]: which keys a query sees."""
        at = torch.arange(start, start + scores.shape[1], device=scores.device)[:, None]
        distance = at - torch.arange(scores.shape[2], device=scores.device)
        sees = distance >= 0 if self.sizes.causal else torch.ones_like(distance, dtype=torch.bool)
        return sees if self.sizes.window is None else sees & (distance.abs() < self.sizes.window)


def make_attention(
    sizes: Sizes, rotation: Rotation | None, config: Config, layer: int
) -> PackedAttention | SegmentAttention:
    """TensorRT-LLM's attention where it does what the layer asks."""
    if sizes.soft_cap is not None or sizes.window is not None:
        return SegmentAttention(sizes, rotation, config)
    return PackedAttention(sizes, rotation, config, layer)
