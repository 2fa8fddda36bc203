"""Decoders that are read for their token vectors: Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3.

They differ by a handful of switches, which are the fields of `families.DecoderSwitches`.
"""

from __future__ import annotations

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Heads, Inputs, Layers, attend, gated
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import Rotation, rotation
from bei_core.models.families import DECODER_ANCHOR, Config, DecoderSizes, DecoderSwitches


class DecoderModel:
    """One checkpoint of a family; `graph` makes its nodes."""

    def __init__(self, switches: DecoderSwitches, config: Config, weights: Weights, max_len: int) -> None:
        self._switches, self._max_len = switches, max_len
        self._sizes = sizes = DecoderSizes.of(switches, config)
        self._layers = Layers(weights)
        self._heads = Heads(sizes.num_queries, sizes.num_keys, sizes.head_size)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        hidden = ops.embedding(self._layers.weights.get(DECODER_ANCHOR, None, self._sizes.hidden), inputs.input_ids)
        if self._switches.gemma:
            hidden = op.multiply(hidden, op.constant(np.float32(self._sizes.hidden**0.5)))
        sights = {kind: self._sight(kind, inputs) for kind in dict.fromkeys(self._sizes.kinds)}
        for layer, kind in enumerate(self._sizes.kinds):
            hidden = self._layer(hidden, f"layers.{layer}.", *sights[kind])
        return self._norm(hidden, "norm")

    def _sight(self, kind: str, inputs: Inputs) -> tuple[Node, Rotation]:
        """(mask, rotation) of a kind of layer."""
        sizes = self._sizes
        mask = inputs.mask(causal=not sizes.both_ways, window=sizes.window(self._switches, kind))
        turn = rotation(sizes.config, sizes.head_size, inputs.position_ids, self._max_len, layer_type=kind)
        return mask, turn

    def _layer(self, hidden: Node, prefix: str, mask: Node, turn: Rotation) -> Node:
        names = (
            ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
            if self._switches.gemma
            else (None, "post_attention_layernorm", None)
        )
        after_attention, before_mlp, after_mlp = (prefix + name if name else None for name in names)
        mixed = self._attention(self._norm(hidden, prefix + "input_layernorm"), prefix + "self_attn.", mask, turn)
        hidden = op.add(hidden, self._norm(mixed, after_attention))
        inner = self._mlp(self._norm(hidden, before_mlp), prefix + "mlp.")
        return op.add(hidden, self._norm(inner, after_mlp))

    def _attention(self, x: Node, prefix: str, mask: Node, turn: Rotation) -> Node:
        heads, bias = self._heads, bool(self._sizes.config.get("attention_bias"))
        parts = []
        for name, number in (("q", heads.queries), ("k", heads.keys), ("v", heads.keys)):
            part = self._layers.linear(
                x, f"{prefix}{name}_proj", self._sizes.hidden, number * heads.size, bias=bias or self._switches.qkv_bias
            )
            part = ops.split_heads(part, number, heads.size)
            parts.append(self._norm(part, f"{prefix}{name}_norm") if self._switches.qk_norm and name != "v" else part)
        mixed = attend(parts, heads, mask, rotation=turn, scale=self._sizes.scale, soft_cap=self._sizes.soft_cap)
        return self._layers.linear(mixed, prefix + "o_proj", heads.width, self._sizes.hidden, bias=bias)

    def _mlp(self, x: Node, prefix: str) -> Node:
        bias, hidden, inner = bool(self._sizes.config.get("mlp_bias")), self._sizes.hidden, self._sizes.inner
        gate, up = (
            self._layers.linear(x, prefix + name, hidden, inner, bias=bias) for name in ("gate_proj", "up_proj")
        )
        product = gated(gate, up, self._sizes.activation)
        return self._layers.linear(product, prefix + "down_proj", inner, hidden, bias=bias)

    def _norm(self, x: Node, name: str | None) -> Node:
        if name is None:
            return x
        return self._layers.rms_norm(x, name, self._sizes.eps, offset=1.0 if self._switches.gemma else 0.0)
