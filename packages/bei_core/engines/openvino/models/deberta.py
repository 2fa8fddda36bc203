"""What DeBERTa v2 and v3 have besides the layers of BERT: disentangled attention (He et al. 2021), a convolution.

Source: transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`. P: relative positions in each direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers
from bei_core.models.deberta import Disentangled
from bei_core.models.sizes import Sizes


@dataclass(frozen=True)
class Positions:
    """Inputs of the relative attention, the same for all layers."""

    options: Disentangled
    embeddings: Node  # f32[1, 2 * P, H]
    c2p: Node  # i64[L, L], row of `embeddings` for a query (first axis) and a key's position ("content to position")
    p2c: Node  # i64[L, L], row of `embeddings` for a key (first axis) and a query's position ("position to content")

    @classmethod
    def of(cls, layers: Layers, sizes: Sizes, options: Disentangled, max_len: int, inputs: Inputs) -> Positions:
        """The relative positions of the tokens of a batch."""
        table = layers.weights.get("encoder.rel_embeddings.weight", None, sizes.hidden)[: 2 * options.span]
        embeddings = op.unsqueeze(ops.constant(table), ops.axis(0))
        if options.norms_positions:
            embeddings = layers.layer_norm(embeddings, "encoder.LayerNorm", sizes.eps)
        # From query - key to key - query, the order of `gather_by_distance`.
        rows = options.rows(np.arange(max_len - 1, -max_len, -1))
        length = ops.row_length(inputs.input_ids)
        # p2c also uses the row of query - key, but there the key is the first axis: the table is reversed.
        c2p, p2c = (ops.gather_by_distance(table, max_len, length) for table in (rows, rows[::-1]))
        return cls(options, embeddings, c2p, p2c)


def disentangled_attention(
    qkv: Sequence[Node], layers: Layers, prefix: str, sizes: Sizes, mask: Node, positions: Positions
) -> Node:
    """f32[R, L, H] of `qkv`, query, key and value [R, N, L, S]; the projections of positions are under `prefix`."""
    heads, options = sizes.heads, positions.options

    def position_heads(kind: str) -> Node:
        name = f"{prefix}attention.self.{options.projection(kind)}"
        projected = layers.linear(positions.embeddings, name, sizes.hidden, sizes.hidden, bias=True)
        return ops.split_heads(projected, heads.num_heads, heads.head_size)

    query, key, value = qkv
    scores = op.matmul(query, key, False, True)
    if "c2p" in options.kinds:
        scores = op.add(scores, _gather_scores(op.matmul(query, position_heads("c2p"), False, True), positions.c2p))
    if "p2c" in options.kinds:
        by_key = _gather_scores(op.matmul(key, position_heads("p2c"), False, True), positions.p2c)
        scores = op.add(scores, op.transpose(by_key, ops.ints(0, 1, 3, 2)))
    scores = op.add(op.multiply(scores, op.constant(np.float32(heads.scale))), mask)
    return ops.merge_heads(op.matmul(op.softmax(scores, -1), value, False, False), heads.width)


def _gather_scores(scores: Node, rows: Node) -> Node:
    """f32[R, N, L, L]: `scores[r, n, i, rows[i, j]]`, of scores f32[R, N, L, 2 * P] and rows i64[L, L]."""
    shape = op.shape_of(scores)
    target = op.concat([op.gather(shape, ops.ints(0, 1, 2, 2), ops.axis(0))], 0)
    return op.gather_elements(scores, op.broadcast(rows, target), 3)


def add_convolution(hidden: Node, x: Node, layers: Layers, sizes: Sizes, inputs: Inputs) -> Node:
    """`hidden` plus a convolution of `x` over the tokens of each sequence, normed (`ConvLayer` in transformers).

    `hidden` itself for a model without it.
    """
    options = sizes.disentangled
    if options is None or not options.kernel_size:
        return hidden
    get, width = layers.weights.get, sizes.hidden
    weight, bias = get("encoder.conv.conv.weight", width, width, None), get("encoder.conv.conv.bias", width)
    total, half = ops.constant(bias), weight.shape[2] // 2
    for index in range(weight.shape[2]):
        shifted = ops.shift_tokens(x, inputs.segment_ids, index - half)
        total = op.add(total, ops.linear(shifted, weight[:, :, index], None))
    mixed = ops.activation(options.kernel_activation)(total)
    return layers.layer_norm(op.add(hidden, mixed), "encoder.conv.LayerNorm", sizes.eps)
