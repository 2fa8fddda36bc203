"""The input of a transformer's first layer: embeddings of words, positions and types, their projection and norm."""

from __future__ import annotations

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers
from bei_core.models.sizes import Sizes
from bei_core.models.tensor_names import POSITIONS, TASK_TYPES, TYPES, TensorNames


def embed(layers: Layers, names: TensorNames, sizes: Sizes, inputs: Inputs) -> Node:
    """The input of the first layer, f32[R, L, H]."""
    weights = layers.weights
    projections = (names.projection, names.normed_projection)
    before, after = (name if name and f"{name}.weight" in weights else "" for name in projections)
    width = None if before or after else sizes.hidden  # embeddings that are projected may be narrower than H
    x = ops.embedding(weights.get(f"{names.words}.weight", sizes.vocab_size, width), inputs.input_ids)
    if sizes.embedding_scale != 1:
        x = op.multiply(x, op.constant(np.float32(sizes.embedding_scale)))
    places = _positions_and_types(layers, sizes, inputs, width)
    x = x if places is None else op.add(x, places)
    if before:
        x = layers.linear(x, before, None, sizes.hidden)
    if names.embedding_norm:
        x = layers.norm(x, names.embedding_norm, sizes)
    return layers.linear(x, after, None, sizes.hidden, bias=True) if after else x


def _positions_and_types(layers: Layers, sizes: Sizes, inputs: Inputs, width: int | None) -> Node | None:
    """Position embeddings plus type embeddings, f32[R, L, width], or f32[width] for all tokens; None without both.

    One table has a row for each type and position, because a lookup takes as long as a small linear layer.
    """
    types = _types(layers, sizes, width)
    if not sizes.num_positions:
        if types is None:
            return None
        return ops.constant(types[0]) if len(types) == 1 else ops.embedding(types, inputs.type_ids)
    table = layers.weights.get(f"{POSITIONS}.weight", sizes.num_positions, width)
    positions, padding_id = inputs.position_ids, sizes.padding_id
    if padding_id is not None:
        table = table[padding_id:]
        has_position = op.not_equal(inputs.input_ids, op.constant(np.int32(padding_id)))
        positions = ops.count_up(has_position, positions)
    if types is None:
        return ops.embedding(table, positions)
    if len(types) > 1:
        positions = op.add(positions, op.multiply(inputs.type_ids, op.constant(np.int32(len(table)))))
    return ops.embedding((types[:, None] + table).reshape(-1, table.shape[1]), positions)


def _types(layers: Layers, sizes: Sizes, width: int | None) -> ops.Array | None:
    """The table of type embeddings f32[num_types, width]; None if the model has none."""
    weights, name = layers.weights, f"{TYPES}.weight"
    if sizes.num_types == 0 or (sizes.num_types is None and name not in weights):
        return None
    types = weights.get(name, sizes.num_types, width)
    return types + weights.get(f"{TASK_TYPES}.weight", None, width)[0] if sizes.has_task_type else types
