"""BERT-like encoders with post-norm layers: one graph for all. `models/families.py` has the names of each family."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, multi_head_attention, split_evenly
from bei_core.engines.openvino.models.weights import Weights
from bei_core.models.configuration import Config
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
        self._activation = ops.activation(self._sizes.activation)

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
        normed = self._norm(op.add(words, self._positions(inputs, width)), self._names.embeddings_norm)
        return self._linear(normed, "embeddings_project", None, self._sizes.hidden) if project else normed

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
        """The attention mask plus relative position biases (MPNet): f32[R, 1 or N, L, L]."""
        mask = inputs.mask()
        if self._names.relative_attention is None:
            return mask
        table = self._weights.get(self._names.relative_attention, None, self._heads.num_heads)
        return op.add(mask, ops.relative_bias(table, self._max_len, ops.row_length(inputs.input_ids)))

    def _layer(self, hidden: Node, bias: Node, prefix: str) -> Node:
        names, width = self._names, self._sizes.hidden
        attended = multi_head_attention(self._heads.split(self._qkv(hidden, prefix)), self._heads, bias)
        attended = self._linear(attended, prefix + names.attention_out, width, width)
        hidden = self._norm(op.add(attended, hidden), prefix + names.attention_norm)
        inner = self._activation(self._linear(hidden, prefix + names.up, width, self._sizes.intermediate_size))
        inner = self._linear(inner, prefix + names.down, self._sizes.intermediate_size, width)
        return self._norm(op.add(inner, hidden), prefix + names.out_norm)

    def _qkv(self, x: Node, prefix: str) -> Iterable[Node]:
        """Query, key and value, f32[R, L, H] each."""
        names, width = self._names, self._sizes.hidden
        if names.qkv is not None:
            return self._layers.split_linear(x, prefix + names.qkv, (width,) * 3, bias=True)
        return (self._linear(x, prefix + name, width, width) for name in (names.query, names.key, names.value))

    def _linear(self, x: Node, name: str, width_in: int | None, width_out: int) -> Node:
        return self._layers.linear(x, name, width_in, width_out, bias=True)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._sizes.eps)
