"""BERT-like encoders with post-norm layers: one graph for all. `models/families.py` has the names of each family."""

from __future__ import annotations

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, gated_activation, multi_head_attention, split_evenly
from bei_core.engines.openvino.models.weights import Weights
from bei_core.models.configuration import Config
from bei_core.models.distances import alibi_slopes
from bei_core.models.families import Family
from bei_core.models.layouts import TASK_TYPES, BertNames, BertSizes, find_layout


class Transformer:
    """The graph of one checkpoint."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        layouts: tuple[BertNames, ...] = family.layout
        self._names = names = find_layout(layouts, lambda layer: f"{layer}.weight" in weights)
        self._words, self._max_len = family.anchor, max_len
        self._sizes = BertSizes.of(names, config)
        self._weights = weights
        self._layers = Layers(weights)
        self._heads = split_evenly(self._sizes.hidden, self._sizes.num_heads)
        self._slopes = alibi_slopes(self._sizes.num_heads) if names.has_alibi else None

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        hidden = self._embed(inputs)
        bias = self._attention_bias(inputs)
        for layer in range(self._sizes.num_layers):
            hidden = self._layer(hidden, bias, self._names.layer.format(layer))
        return hidden

    def _embed(self, inputs: Inputs) -> Node:
        project = "embeddings_project.weight" in self._weights  # ELECTRA's embeddings may be narrower than H
        width = None if project else self._sizes.hidden
        words = ops.embedding(self._weights.get(self._words, self._sizes.vocab_size, width), inputs.input_ids)
        places = self._types(inputs) if self._names.has_alibi else self._positions(inputs, width)
        normed = self._norm(op.add(words, places), self._names.embedding_norm)
        return self._linear(normed, "embeddings_project", None, self._sizes.hidden) if project else normed

    def _types(self, inputs: Inputs) -> Node:
        """Type embeddings, f32[R, L, H]."""
        types = self._weights.get("embeddings.token_type_embeddings.weight", self._sizes.num_types, self._sizes.hidden)
        return ops.embedding(types, inputs.type_ids)

    def _positions(self, inputs: Inputs, width: int | None) -> Node:
        """Position embeddings plus type embeddings, f32[R, L, width].

        One table has a row for each type and position, because a lookup takes as long as a small linear layer.
        """
        table = self._weights.get("embeddings.position_embeddings.weight", self._sizes.num_positions, width)
        positions, padding_id = inputs.position_ids, self._sizes.padding_id
        if padding_id is not None:
            table = table[padding_id:]
            has_position = op.not_equal(inputs.input_ids, op.constant(np.int32(padding_id)))
            positions = ops.count_up(has_position, positions)
        if not self._sizes.num_types:
            return ops.embedding(table, positions)
        types = self._weights.get("embeddings.token_type_embeddings.weight", self._sizes.num_types, width)
        if self._sizes.has_task_type:
            types = types + self._weights.get(TASK_TYPES, None, width)[0]
        if len(types) > 1:  # the only type is that of every token
            positions = op.add(positions, op.multiply(inputs.type_ids, op.constant(np.int32(len(table)))))
        return ops.embedding((types[:, None] + table).reshape(-1, table.shape[1]), positions)

    def _attention_bias(self, inputs: Inputs) -> Node:
        """The attention mask plus relative position biases (MPNet): f32[R, 1 or N, L, L].

        For ALiBi, f32[R, 1, L, L]: the mask minus the distances, before the slope of each head.
        """
        mask = inputs.mask()
        if self._names.has_alibi:
            return op.subtract(mask, ops.distances(inputs.position_ids))
        if self._names.relative_attention is None:
            return mask
        table = self._weights.get(self._names.relative_attention, None, self._heads.num_heads)
        return op.add(mask, ops.relative_bias(table, self._max_len, ops.row_length(inputs.input_ids)))

    def _layer(self, hidden: Node, bias: Node, prefix: str) -> Node:
        names, width, inner = self._names, self._sizes.hidden, self._sizes.intermediate_size
        qkv = self._heads.split(self._qkv(hidden, prefix))
        attended = multi_head_attention(qkv, self._heads, bias, slopes=self._slopes)
        attended = self._linear(attended, prefix + names.out, width, width)
        attended = self._norm(op.add(attended, hidden), prefix + names.attention_norm)
        if names.attention_out_norm:  # the input of the layer is added once more
            attended = self._norm(op.add(hidden, attended), prefix + names.attention_out_norm)
        down = self._linear(self._inner(attended, prefix + names.up[0]), prefix + names.down, inner, width)
        return self._norm(op.add(down, attended), prefix + names.mlp_norm)

    def _inner(self, x: Node, name: str) -> Node:
        """The input of the last layer of the MLP, f32[R, L, intermediate_size]."""
        inner, activation = self._sizes.intermediate_size, self._sizes.activation
        if not self._names.has_alibi:
            return ops.activation(activation)(self._linear(x, name, self._sizes.hidden, inner))
        first, second = self._layers.split_linear(x, name, (inner, inner))
        gate, up = (second, first) if self._names.up_first else (first, second)
        return gated_activation(gate, up, activation)

    def _qkv(self, x: Node, prefix: str) -> list[Node]:
        """Query, key and value, f32[R, L, H] each."""
        names, width = self._names, self._sizes.hidden
        layers = [prefix + name for name in names.qkv]
        query, key, value = self._layers.linears(x, layers, (width,) * 3, size_in=width, bias=True)
        if names.qk_norms:
            query, key = (self._norm(y, f"{prefix}{names.qk_norms}{name}") for y, name in ((query, "q"), (key, "k")))
        return [query, key, value]

    def _linear(self, x: Node, name: str, width_in: int | None, width_out: int) -> Node:
        return self._layers.linear(x, name, width_in, width_out, bias=True)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._sizes.eps)
