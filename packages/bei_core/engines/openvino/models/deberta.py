"""DeBERTa v2 and v3: disentangled attention to content and relative position (He et al. 2021).

Source: transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`. P: relative positions in each direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, split_evenly
from bei_core.engines.openvino.models.weights import Weights
from bei_core.models.configuration import Config
from bei_core.models.deberta import DebertaSizes
from bei_core.models.families import Family


@dataclass(frozen=True)
class _Positions:
    """Inputs of the relative attention, the same for all layers."""

    embeddings: Node  # f32[1, 2 * P, H]
    c2p: Node  # i64[L, L], row of `embeddings` for a query (first axis) and a key's position ("content to position")
    p2c: Node  # i64[L, L], row of `embeddings` for a key (first axis) and a query's position ("position to content")


class Transformer:
    """The graph of one checkpoint."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        self._sizes, self._max_len = DebertaSizes.of(config), max_len
        self._words, self._layers = family.anchor, Layers(weights)
        self._hidden, self._inner = self._sizes.hidden, self._sizes.intermediate_size
        self._heads = split_evenly(self._hidden, self._sizes.num_heads)
        self._eps, self._activation = self._sizes.eps, ops.activation(self._sizes.activation)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        first = hidden = self._embed(inputs)
        mask, positions = inputs.mask(), self._positions(inputs)
        for layer in range(self._sizes.num_layers):
            hidden = self._layer(hidden, mask, positions, f"encoder.layer.{layer}.")
            if layer == 0 and self._sizes.kernel_size:
                hidden = self._convolution(first, hidden, inputs)
        return hidden

    def _embed(self, inputs: Inputs) -> Node:
        get = self._layers.weights.get
        total = ops.embedding(get(self._words, None, None), inputs.input_ids)
        if self._sizes.num_positions:
            table = get("embeddings.position_embeddings.weight", None, None)
            total = op.add(total, ops.embedding(table, inputs.position_ids))
        if self._sizes.num_types:
            types = get("embeddings.token_type_embeddings.weight", None, None)
            total = op.add(total, ops.embedding(types, inputs.type_ids))
        if "embeddings.embed_proj.weight" in self._layers.weights:
            total = self._layers.linear(total, "embeddings.embed_proj", None, self._hidden)
        return self._norm(total, "embeddings.LayerNorm")

    def _positions(self, inputs: Inputs) -> _Positions:
        table = self._layers.weights.get("encoder.rel_embeddings.weight", None, self._hidden)[: 2 * self._sizes.span]
        embeddings = op.unsqueeze(ops.constant(table), ops.axis(0))
        if self._sizes.norms_positions:
            embeddings = self._norm(embeddings, "encoder.LayerNorm")
        # From query - key to key - query, the order of `gather_by_distance`.
        rows = self._sizes.rows(np.arange(self._max_len - 1, -self._max_len, -1))
        length = ops.row_length(inputs.input_ids)
        # p2c also uses the row of query - key, but there the key is the first axis: the table is reversed.
        c2p, p2c = (ops.gather_by_distance(table, self._max_len, length) for table in (rows, rows[::-1]))
        return _Positions(embeddings, c2p, p2c)

    def _layer(self, hidden: Node, mask: Node, positions: _Positions, prefix: str) -> Node:
        attended = self._attention(hidden, mask, positions, prefix + "attention.self.")
        width = self._hidden
        attended = self._layers.linear(attended, prefix + "attention.output.dense", width, width, bias=True)
        hidden = self._norm(op.add(attended, hidden), prefix + "attention.output.LayerNorm")
        inner = self._layers.linear(hidden, prefix + "intermediate.dense", self._hidden, self._inner, bias=True)
        inner = self._layers.linear(
            self._activation(inner), prefix + "output.dense", self._inner, self._hidden, bias=True
        )
        return self._norm(op.add(inner, hidden), prefix + "output.LayerNorm")

    def _attention(self, x: Node, mask: Node, positions: _Positions, prefix: str) -> Node:
        query, key, value = (self._project_heads(x, f"{prefix}{name}_proj") for name in ("query", "key", "value"))
        shared = self._sizes.shares_projections
        scores = op.matmul(query, key, False, True)
        if "c2p" in self._sizes.kinds:
            pos_key = self._project_heads(positions.embeddings, prefix + ("key_proj" if shared else "pos_key_proj"))
            scores = op.add(scores, _gather_scores(op.matmul(query, pos_key, False, True), positions.c2p))
        if "p2c" in self._sizes.kinds:
            name = "query_proj" if shared else "pos_query_proj"
            pos_query = self._project_heads(positions.embeddings, prefix + name)
            by_key = _gather_scores(op.matmul(key, pos_query, False, True), positions.p2c)
            scores = op.add(scores, op.transpose(by_key, ops.ints(0, 1, 3, 2)))
        scores = op.add(op.multiply(scores, op.constant(np.float32(self._sizes.scale))), mask)
        return ops.merge_heads(op.matmul(op.softmax(scores, -1), value, False, False), self._hidden)

    def _project_heads(self, x: Node, name: str) -> Node:
        projected = self._layers.linear(x, name, self._hidden, self._hidden, bias=True)
        return ops.split_heads(projected, self._heads.num_heads, self._heads.head_size)

    def _convolution(self, x: Node, hidden: Node, inputs: Inputs) -> Node:
        """Adds to `hidden` a convolution of `x` over the tokens of each sequence (`ConvLayer` in transformers)."""
        get, width = self._layers.weights.get, self._hidden
        weight, bias = get("encoder.conv.conv.weight", width, width, None), get("encoder.conv.conv.bias", width)
        total, half = ops.constant(bias), weight.shape[2] // 2
        for index in range(weight.shape[2]):
            shifted = ops.shift_tokens(x, inputs.segment_ids, index - half)
            total = op.add(total, ops.linear(shifted, weight[:, :, index], None))
        act = ops.activation(self._sizes.kernel_activation)
        return self._norm(op.add(hidden, act(total)), "encoder.conv.LayerNorm")

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._eps)


def _gather_scores(scores: Node, rows: Node) -> Node:
    """f32[R, N, L, L]: `scores[r, n, i, rows[i, j]]`, of scores f32[R, N, L, 2 * P] and rows i64[L, L]."""
    shape = op.shape_of(scores)
    target = op.concat([op.gather(shape, ops.ints(0, 1, 2, 2), ops.axis(0))], 0)
    return op.gather_elements(scores, op.broadcast(rows, target), 3)
