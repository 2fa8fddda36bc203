"""Static embeddings: each token's vector is a row of a table (`models/sentence/static`)."""

from __future__ import annotations

from openvino import Node

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs
from bei_core.engines.openvino.models.weights import Weights
from bei_core.errors import CheckpointError
from bei_core.models.configuration import Config, read_size
from bei_core.models.families import Family


def look_up(family: Family, config: Config, weights: Weights, inputs: Inputs) -> Node:
    """The rows f32[R, L, H] of the tokens.

    The table of model2vec has shared rows, which are copied, and each token's factor, by which they are multiplied.
    """
    table = weights.get(family.anchor, None, read_size(config, "hidden_size"))
    if "mapping" in weights:
        rows = weights.ints("mapping")
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(table):
            raise CheckpointError(f"the tensor mapping has an index outside the table, which has {len(table)} rows")
        table = table[rows]
    if "weights" in weights:
        table = table * weights.get("weights", len(table))[:, None]
    return ops.embedding(table, inputs.input_ids)
