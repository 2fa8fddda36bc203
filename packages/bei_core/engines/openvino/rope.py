"""Rotary position embedding (RoPE, Su et al. 2021) in a graph; `models/rope` computes the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.models.configuration import Config
from bei_core.models.rope import rope_tables


@dataclass(frozen=True)
class Rope:
    """Cosines and sines at the positions of a batch."""

    cos: Node  # f32[R, 1, L, S]
    sin: Node  # f32[R, 1, L, S]

    def apply(self, x: Node) -> Node:
        """f32[R, N, L, S] of queries or keys of that shape; element i of a head rotates with element i + S / 2."""
        first, second = op.split(x, ops.axis(-1), 2).outputs()
        rotated = op.concat([op.multiply(second, op.constant(np.float32(-1))), first], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(rotated, self.sin))


def make_ropes(
    config: Config, head_size: int, positions: Sequence[Node], max_len: int, *, layer_type: str
) -> list[Rope]:
    """Rotary embedding of a layer type at each of `positions` i32[R, L].

    Raises UnsupportedModelError for unknown scalings.
    """
    tables = [ops.constant(table) for table in rope_tables(config, head_size, max_len, layer_type=layer_type)]
    return [Rope(*(op.unsqueeze(op.gather(x, at, ops.axis(0)), ops.axis(1)) for x in tables)) for at in positions]
