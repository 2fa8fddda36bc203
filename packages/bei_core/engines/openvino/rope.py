"""Rotary position embedding in a graph; the tables are `engines/rope`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.models.rope import tables


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding at the places of a batch."""

    cos: Node  # f32[R, 1, L, D]
    sin: Node

    def turn(self, x: Node) -> Node:
        """[R, N, L, D] rotated, the first half of each head with the second."""
        first, second = op.split(x, ops.axis(-1), 2).outputs()
        turned = op.concat([op.multiply(second, op.constant(np.float32(-1))), first], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))


def rotation(
    config: Mapping[str, Any], head_size: int, positions: Node, max_len: int, *, layer_type: str = "full_attention"
) -> Rotation:
    """The rotation of a layer type's queries and keys. Raises UnsupportedModelError for a scaling outside the table."""
    both = tables(config, head_size, max_len, layer_type=layer_type)
    cos, sin = (op.unsqueeze(ops.embedding(table, positions), ops.axis(1)) for table in both)
    return Rotation(cos, sin)
