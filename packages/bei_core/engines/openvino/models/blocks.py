"""Building blocks of the model families: graph inputs, attention, and layers that fetch their own weights by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import Rope
from bei_core.models.sizes import Heads, Sizes

INPUT_NAMES = ("input_ids", "position_ids", "segment_ids", "type_ids", "starts", "lengths")
OUTPUT_INDICES = "output_indices"  # input of a graph whose pooling reads one token of each sequence, besides those
KEY_NAMES = ("prefix_ids", "key_indices", "key_segment_ids")  # inputs of a graph that shares prefixes, besides those


@dataclass(frozen=True, slots=True)
class Keys:
    """The tokens that the tokens of each row may attend to: K of them, which include the row's own."""

    prefix_ids: Node  # i32[R, L], the segment id of the prefix that a token's sequence shares with others
    indices: Node  # i32[R, K], into the R * L tokens
    segment_ids: Node  # i32[R, K]

    def select(self, x: Node) -> Node:
        """[R, K, ...]: what `x` [R, L, ...] has for these tokens."""
        return ops.gather_tokens(x, self.indices)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Graph inputs, i32[R, L] each; positions count from 0 in each sequence."""

    input_ids: Node
    position_ids: Node
    segment_ids: Node
    type_ids: Node
    keys: Keys | None = None  # None: a row's keys are its own tokens, and no prefix is shared

    def mask(self, *, causal: bool = False, window: int | None = None) -> Node:
        """f32[R, 1, L, L], to be added to attention scores; f32[R, 1, L, K] with keys. See `ops.attention_mask`.

        A token attends to its own segment and to the shared prefix of its sequence.
        """
        if self.keys is None:
            keys, allowed = self.position_ids, ops.same_segment(self.segment_ids, self.segment_ids)
        else:
            ids, keys = self.keys.segment_ids, self.keys.select(self.position_ids)
            allowed = op.logical_or(
                ops.same_segment(self.segment_ids, ids), ops.same_segment(self.keys.prefix_ids, ids)
            )
        return ops.attention_mask(allowed, self.position_ids, keys, causal=causal, window=window)


class Layers:
    """A checkpoint's layers by name. A bias in the checkpoint is always used; `bias=True` says that it must exist."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def linear(self, x: Node, name: str, size_in: int | None, size_out: int | None, *, bias: bool = False) -> Node:
        """f32[..., size_out] of `x` [..., size_in]; a size of None is not checked."""
        weight = self.weights.get(f"{name}.weight", size_out, size_in)
        return ops.linear(x, weight, self._bias(name, len(weight), bias), name)

    def split_linear(self, x: Node, name: str, sizes: tuple[int, ...], *, bias: bool = False) -> list[Node]:
        """The output of a fused layer (such as Wqkv) in parts of these sizes, computed by one matmul for each part.

        This is as fast as one matmul and a split. The MatMul nodes are called "{name}.0", "{name}.1" and so on.
        """
        weight, shift = self.weights.get(f"{name}.weight", sum(sizes), None), self._bias(name, sum(sizes), bias)
        parts, start = [], 0
        for part, size in enumerate(sizes):
            rows = slice(start, start + size)
            parts.append(ops.linear(x, weight[rows], None if shift is None else shift[rows], f"{name}.{part}"))
            start += size
        return parts

    def linears(
        self, x: Node, names: Sequence[str], sizes: tuple[int, ...], *, size_in: int | None = None, bias: bool = False
    ) -> list[Node]:
        """The outputs of several layers, f32[..., size] each; a single name is a fused layer of all of them."""
        if len(names) == 1:
            return self.split_linear(x, names[0], sizes, bias=bias)
        return [self.linear(x, name, size_in, size, bias=bias) for name, size in zip(names, sizes, strict=True)]

    def layer_norm(self, x: Node, name: str, eps: float, *, bias: bool = True) -> Node:
        """LayerNorm of [..., H]."""
        return ops.layer_norm(x, self.weights.get(f"{name}.weight", None), self._bias(name, None, bias), eps)

    def rms_norm(self, x: Node, name: str, eps: float, *, offset: float = 0.0) -> Node:
        """RMSNorm of [..., H]; `offset` is added to the stored weight (1 for Gemma)."""
        return ops.rms_norm(x, self.weights.get(f"{name}.weight", None) + np.float32(offset), eps)

    def norm(self, x: Node, name: str, sizes: Sizes) -> Node:
        """The norm of a transformer's family, of [..., H]."""
        if sizes.is_rms:
            return self.rms_norm(x, name, sizes.eps, offset=sizes.norm_offset)
        return self.layer_norm(x, name, sizes.eps, bias=sizes.norm_bias)

    def _bias(self, name: str, size: int | None, required: bool) -> ops.Array | None:
        return self.weights.get(f"{name}.bias", size) if required or f"{name}.bias" in self.weights else None


def multi_head_attention(
    qkv: Sequence[Node],
    heads: Heads,
    mask: Node,
    *,
    rope: Rope | None = None,
    key_rope: Rope | None = None,
    soft_cap: float | None = None,
    slopes: ops.Array | None = None,
) -> Node:
    """f32[R, L, N * S] of `qkv`: query [R, N, L, S], key and value [R, K, L, S].

    Keys may be other tokens than the queries; then `key_rope` has their positions. `soft_cap` and `slopes` are those of
    `ops.attention`.
    """
    query, key, value = qkv
    if rope is not None:
        query, key = rope.apply(query), (key_rope or rope).apply(key)
    times = heads.num_heads // heads.num_kv_heads
    key, value = (ops.repeat_heads(x, times, heads.num_kv_heads, heads.head_size) for x in (key, value))
    attended = ops.attention(query, key, value, mask, heads.scale, soft_cap=soft_cap, slopes=slopes)
    return ops.merge_heads(attended, heads.width)


def gated_activation(gate: Node, up: Node, activation: str) -> Node:
    """activation(gate) * up, elementwise (Shazeer 2020, "GLU Variants Improve Transformer")."""
    return op.multiply(ops.activation(activation)(gate), up)
