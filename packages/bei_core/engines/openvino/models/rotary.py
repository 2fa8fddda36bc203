"""Encoders with rotary positions and gated MLPs: ModernBERT, NomicBERT (v1.5 and v2), GTE (`NewModel`).

ModernBERT (Warner et al. 2024) is pre-norm, and two thirds of its layers have a sliding window; Nomic Embed (Nussbaum
et al. 2024) and mGTE (Zhang et al. 2024) are post-norm. Nomic Embed v2 (Nussbaum and Duderstadt 2025) has plain MLPs,
and experts in every second layer. `models/rotary_layouts.py` has the names of the tensors.
"""

from __future__ import annotations

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, gated_activation, multi_head_attention, split_evenly
from bei_core.engines.openvino.models.experts import mix_experts, route
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import Rope, make_ropes
from bei_core.models.configuration import Config
from bei_core.models.families import Family
from bei_core.models.layouts import SLIDING, RotaryNames, RotarySizes, find_layout
from bei_core.models.rotary_layouts import check_experts

_TYPES = "embeddings.token_type_embeddings.weight"


class Transformer:
    """The graph of one checkpoint."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        layouts: tuple[RotaryNames, ...] = family.layout
        self._names = find_layout(layouts, lambda layer: f"{layer}.weight" in weights)
        self._sizes = RotarySizes.of(self._names, config)
        check_experts(self._names, self._sizes, lambda layer: f"{layer}.weight" in weights)
        self._config, self._max_len = config, max_len
        self._words, self._layers = family.anchor, Layers(weights)
        self._heads = split_evenly(self._sizes.hidden, self._sizes.num_heads)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        types = self._sizes.layer_types
        masks_and_ropes = {name: self._mask_and_rope(name, inputs) for name in dict.fromkeys(types)}
        hidden = self._norm(self._embed(inputs), self._names.embedding_norm)
        layer = self._post_norm_layer if self._names.final_norm is None else self._pre_norm_layer
        for number, name in enumerate(types):
            hidden = layer(hidden, number, *masks_and_ropes[name])
        return hidden if self._names.final_norm is None else self._norm(hidden, self._names.final_norm)

    def _embed(self, inputs: Inputs) -> Node:
        weights, hidden = self._layers.weights, self._sizes.hidden
        words = ops.embedding(weights.get(self._words, None, hidden), inputs.input_ids)
        if _TYPES not in weights:
            return words
        types = weights.get(_TYPES, None, hidden)
        return op.add(words, self._type_vectors(types, inputs))

    def _type_vectors(self, types: ops.Array, inputs: Inputs) -> Node:
        """f32[H] if all tokens have the only type embedding, else f32[R, L, H]."""
        has_one = self._names.has_one_type(len(types))
        return ops.constant(types[0]) if has_one else ops.embedding(types, inputs.type_ids)

    def _mask_and_rope(self, layer_type: str, inputs: Inputs) -> tuple[Node, Rope]:
        mask = inputs.mask(window=self._sizes.window if layer_type == SLIDING else None)
        size, positions = self._heads.head_size, [inputs.position_ids]
        return mask, *make_ropes(self._config, size, positions, self._max_len, layer_type=layer_type)

    def _pre_norm_layer(self, hidden: Node, number: int, mask: Node, rope: Rope) -> Node:
        names, prefix = self._names, self._names.layer.format(number)
        # The input of the first layer is already normalised.
        x = self._norm(hidden, prefix + names.attention_norm) if number else hidden
        hidden = op.add(hidden, self._attention(x, prefix, mask, rope))
        return op.add(hidden, self._mlp(self._norm(hidden, prefix + names.mlp_norm), prefix))

    def _post_norm_layer(self, hidden: Node, number: int, mask: Node, rope: Rope) -> Node:
        names, prefix = self._names, self._names.layer.format(number)
        attended = self._attention(hidden, prefix, mask, rope)
        hidden = self._norm(op.add(hidden, attended), prefix + names.attention_norm)
        return self._norm(op.add(hidden, self._mlp(hidden, prefix)), prefix + names.mlp_norm)

    def _attention(self, x: Node, prefix: str, mask: Node, rope: Rope) -> Node:
        width, bias = self._sizes.hidden, self._sizes.attention_bias
        parts = self._layers.linears(x, [prefix + name for name in self._names.qkv], (width,) * 3, bias=bias)
        attended = multi_head_attention(self._heads.split(parts), self._heads, mask, rope=rope)
        return self._layers.linear(attended, prefix + self._names.out, width, width, bias=bias)

    def _mlp(self, x: Node, prefix: str) -> Node:
        """A gated MLP, a plain MLP or experts (Nomic Embed v2): the tensors of the checkpoint decide which."""
        names, hidden, inner = self._names, self._sizes.hidden, self._sizes.intermediate_size
        router = prefix + "mlp.router.layer"
        if (experts := self._sizes.experts) is not None and f"{router}.weight" in self._layers.weights:
            shares = route(x, self._layers, router, experts)
            return mix_experts(x, self._layers, prefix + "mlp.experts", shares, self._sizes.activation)
        if names.up and f"{prefix}{names.up[0]}.weight" in self._layers.weights:
            y = self._gated(x, prefix)
        else:
            y = self._layers.linear(x, prefix + "mlp.fc1", hidden, inner, bias=self._sizes.mlp_bias)
            y = ops.activation(self._sizes.activation)(y)
        return self._layers.linear(y, prefix + names.down, inner, hidden, bias=self._sizes.out_bias)

    def _gated(self, x: Node, prefix: str) -> Node:
        names, bias = [prefix + name for name in self._names.up], self._sizes.mlp_bias
        first, second = self._layers.linears(x, names, (self._sizes.intermediate_size,) * 2, bias=bias)
        up, gate = (first, second) if self._names.up_first else (second, first)
        return gated_activation(gate, up, self._sizes.activation)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._sizes.eps, bias=self._sizes.norm_bias)
