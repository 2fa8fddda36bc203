"""The encoders of T5 and mT5 (Raffel et al. 2020): pre-norm layers, relative position biases, no scaling of scores.

Source: transformers 5.23, `models/t5/modeling_t5.py`. As in `T5EncoderModel`, a decoder in the checkpoint is ignored.
"""

from __future__ import annotations

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import (
    AttentionHeads,
    Inputs,
    Layers,
    gated_activation,
    multi_head_attention,
)
from bei_core.engines.openvino.models.weights import Weights
from bei_core.models.configuration import Config, read_number, read_size
from bei_core.models.families import Family
from bei_core.models.layouts import T5_BIAS, T5_WORDS, t5_activation


class Transformer:
    """The graph of one checkpoint."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = read_size(config, "d_model")
        self._inner = read_size(config, "d_ff")
        num_heads = read_size(config, "num_heads")
        self._heads = AttentionHeads(num_heads, num_heads, read_size(config, "d_kv"))
        self._eps = read_number(config, "layer_norm_epsilon", 1e-6)
        self._activation, self._is_gated = t5_activation(config)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        weights = self._layers.weights
        words = next((name for name in T5_WORDS if name in weights), T5_WORDS[0])
        hidden = ops.embedding(weights.get(words, None, self._hidden), inputs.input_ids)
        bias = self._bias(inputs)
        for layer in range(read_size(self._config, "num_layers")):
            prefix = f"encoder.block.{layer}.layer."
            x = self._norm(hidden, prefix + "0.layer_norm")
            hidden = op.add(hidden, self._attention(x, bias, prefix + "0.SelfAttention."))
            x = self._norm(hidden, prefix + "1.layer_norm")
            hidden = op.add(hidden, self._mlp(x, prefix + "1.DenseReluDense."))
        return self._norm(hidden, "encoder.final_layer_norm")

    def _bias(self, inputs: Inputs) -> Node:
        """The attention mask plus the biases of the first layer, which all layers use: f32[R, N, L, L]."""
        num_buckets = read_size(self._config, "relative_attention_num_buckets", default=32)
        max_distance = read_size(self._config, "relative_attention_max_distance", default=128)
        table = self._layers.weights.get(f"{T5_BIAS}.weight", num_buckets, self._heads.num_heads)
        length = ops.row_length(inputs.input_ids)
        return op.add(inputs.mask(), ops.relative_bias(table, self._max_len, length, max_distance=max_distance))

    def _attention(self, x: Node, bias: Node, prefix: str) -> Node:
        width = self._heads.width
        parts = (self._layers.linear(x, prefix + name, self._hidden, width) for name in ("q", "k", "v"))
        attended = multi_head_attention(self._heads.split(parts), self._heads, bias, scale=1.0)
        return self._layers.linear(attended, prefix + "o", width, self._hidden)

    def _mlp(self, x: Node, prefix: str) -> Node:
        inner = self._gated(x, prefix) if self._is_gated else self._plain(x, prefix)
        return self._layers.linear(inner, prefix + "wo", self._inner, self._hidden)

    def _plain(self, x: Node, prefix: str) -> Node:
        return ops.activation(self._activation)(self._layers.linear(x, prefix + "wi", self._hidden, self._inner))

    def _gated(self, x: Node, prefix: str) -> Node:
        names = (prefix + "wi_0", prefix + "wi_1")
        gate, up = (self._layers.linear(x, name, self._hidden, self._inner) for name in names)
        return gated_activation(gate, up, self._activation)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.rms_norm(x, name, self._eps)
