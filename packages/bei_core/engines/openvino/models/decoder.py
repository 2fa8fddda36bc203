"""Decoder-only transformers: Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3; some also with bidirectional attention.

`layouts.DecoderSwitches` lists the differences between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import (
    AttentionHeads,
    Inputs,
    Keys,
    Layers,
    gated_activation,
    multi_head_attention,
)
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import Rope, make_ropes
from bei_core.models.configuration import Config
from bei_core.models.families import Family
from bei_core.models.layouts import PROJECTION, DecoderSizes, DecoderSwitches


@dataclass(frozen=True, slots=True)
class _Context:
    """What the attention of all layers of one type uses."""

    mask: Node  # f32[R, 1, L, K], or [R, 1, L, L] if a row's keys are its own tokens
    rope: Rope  # at the positions of the queries
    key_rope: Rope  # at the positions of the keys
    keys: Keys | None  # None: a row's keys are its own tokens


class Transformer:
    """The graph of one checkpoint."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        self._words, self._max_len = family.anchor, max_len
        self._switches: DecoderSwitches = family.layout
        self._sizes = sizes = DecoderSizes.of(self._switches, config)
        self._layers = Layers(weights)
        self._heads = AttentionHeads(sizes.num_heads, sizes.num_kv_heads, sizes.head_size)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        hidden = ops.embedding(self._layers.weights.get(self._words, None, self._sizes.hidden), inputs.input_ids)
        if self._switches.gemma:
            hidden = op.multiply(hidden, op.constant(np.float32(self._sizes.hidden**0.5)))
        layer_types = self._sizes.layer_types
        contexts = {name: self._context(name, inputs) for name in dict.fromkeys(layer_types)}
        for layer, layer_type in enumerate(layer_types):
            hidden = self._layer(hidden, f"layers.{layer}.", contexts[layer_type])
        return self._project(self._norm(hidden, "norm"))

    def _project(self, hidden: Node) -> Node:
        """f32[R, L, D] of token vectors f32[R, L, H]: the last layer of some bidirectional models; else unchanged."""
        outside = self._layers.weights.without_prefix()
        if f"{PROJECTION}.weight" not in outside:
            return hidden
        return Layers(outside).linear(hidden, PROJECTION, self._sizes.hidden, None)

    def _context(self, layer_type: str, inputs: Inputs) -> _Context:
        sizes, keys = self._sizes, inputs.keys
        mask = inputs.mask(causal=not sizes.bidirectional, window=sizes.window(self._switches, layer_type))
        positions = [inputs.position_ids]
        if keys is not None:
            positions.append(keys.select(inputs.position_ids))
        ropes = make_ropes(sizes.config, sizes.head_size, positions, self._max_len, layer_type=layer_type)
        return _Context(mask, ropes[0], ropes[-1], keys)

    def _layer(self, hidden: Node, prefix: str, context: _Context) -> Node:
        names = (
            ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
            if self._switches.out_norms
            else (None, "post_attention_layernorm", None)
        )
        after_attention, before_mlp, after_mlp = (prefix + name if name else None for name in names)
        attended = self._attention(self._norm(hidden, prefix + "input_layernorm"), prefix + "self_attn.", context)
        hidden = op.add(hidden, self._norm(attended, after_attention))
        inner = self._mlp(self._norm(hidden, before_mlp), prefix + "mlp.")
        return op.add(hidden, self._norm(inner, after_mlp))

    def _attention(self, x: Node, prefix: str, context: _Context) -> Node:
        heads, bias = self._heads, bool(self._sizes.config.get("attention_bias"))
        qkv = []
        for name, number in (("q", heads.num_heads), ("k", heads.num_kv_heads), ("v", heads.num_kv_heads)):
            width, has_bias = number * heads.head_size, bias or self._switches.qkv_bias
            x_heads = self._layers.linear(x, f"{prefix}{name}_proj", self._sizes.hidden, width, bias=has_bias)
            if name != "q" and context.keys is not None:
                x_heads = context.keys.select(x_heads)
            x_heads = ops.split_heads(x_heads, number, heads.head_size)
            has_norm = self._switches.qk_norm and name != "v"
            qkv.append(self._norm(x_heads, f"{prefix}{name}_norm") if has_norm else x_heads)
        attended = multi_head_attention(
            qkv,
            heads,
            context.mask,
            rope=context.rope,
            key_rope=context.key_rope,
            scale=self._sizes.scale,
            soft_cap=self._sizes.soft_cap,
        )
        return self._layers.linear(attended, prefix + "o_proj", heads.width, self._sizes.hidden, bias=bias)

    def _mlp(self, x: Node, prefix: str) -> Node:
        bias = bool(self._sizes.config.get("mlp_bias"))
        hidden, inner = self._sizes.hidden, self._sizes.intermediate_size
        gate, up = (
            self._layers.linear(x, prefix + name, hidden, inner, bias=bias) for name in ("gate_proj", "up_proj")
        )
        gated = gated_activation(gate, up, self._sizes.activation)
        return self._layers.linear(gated, prefix + "down_proj", inner, hidden, bias=bias)

    def _norm(self, x: Node, name: str | None) -> Node:
        if name is None:
            return x
        return self._layers.rms_norm(x, name, self._sizes.eps, offset=1.0 if self._switches.gemma else 0.0)
