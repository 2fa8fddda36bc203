"""Quantisation of weights only: 8 or 4 bits for each weight; activations keep the precision of the computation.

Weights are rounded to the nearest level, which needs no calibration texts. The CPU plugin keeps them in 8 or 4 bits in
memory and widens them inside the matmul (docs/decisions/033-weight-only.md). Linear layers of the transformer and
large tables of embeddings are quantised. Tables always get 8 bits.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.engines.calibration import with_progress
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import INPUT_NAMES
from bei_core.engines.openvino.quantize.blocks import in_blocks
from bei_core.engines.openvino.quantize.graph import linear_matmuls
from bei_core.engines.openvino.stored import StoredTensor, drop_mapped_pages, lookups, stored_values
from bei_core.errors import UnsupportedModelError

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

# Weights of a 4-bit group, which has one scale. If it does not divide a row, the largest power of two that does. A
# layer whose groups would be smaller than _MIN_GROUP gets 8 bits.
_GROUP, _MIN_GROUP = 128, 16

# A 4-bit group's weight that is farthest from zero gets level -8 after division by one of these, whichever gives the
# least squared error. On MiniLM: relative error 0.106, but 0.112 with 1 alone, and 0.128 with levels -7 to 7.
_CLIPS = (1.0, 0.9, 0.8)


def quantize_weights(graph: Model, bits: int, *, mlp_only: bool) -> None:
    """Quantise the weights of a graph to 8 or 4 bits in place; those of attention's layers only if not `mlp_only`.

    A weight is in memory as f32 only while it is quantised. Raises UnsupportedModelError for a graph without linear
    layers.
    """
    matmuls = linear_matmuls(graph, mlp_only=mlp_only)
    if not matmuls:
        raise UnsupportedModelError("the model has no linear layers to quantise")
    for _, matmul in with_progress(matmuls, f"quantising to {bits} bits", "layers"):
        weight = stored_values(matmul.input_value(1).get_node())
        has_groups = bits == 4 and group_size(weight.shape[1]) >= _MIN_GROUP
        matmul.input(1).replace_source_output((_in_4_bits if has_groups else _in_8_bits)(weight).output(0))
        drop_mapped_pages(graph.checkpoint.folder)
    tables = list(lookups(graph, INPUT_NAMES[0]))
    for rows, ids, table in tables:
        quantised = _lookup(table, ids).output(0)
        for target in rows.output(0).get_target_inputs():
            target.replace_source_output(quantised)
    drop_mapped_pages(graph.checkpoint.folder)
    log.info("weights in %d bits for %d linear layers, in 8 bits for %d tables", bits, len(matmuls), len(tables))


def _in_8_bits(weight: StoredTensor) -> Node:
    """f32[out, in] of the quantised weights, one scale for each row."""
    integers, scales = quantize_rows(weight)
    return op.multiply(op.convert(op.constant(integers), Type.f32), op.constant(scales))


def _in_4_bits(weight: StoredTensor) -> Node:
    """f32[out, in] of the quantised weights, one scale for each group."""
    size_out, size_in = weight.shape
    group = group_size(size_in)
    packed, scales = quantize_groups(weight, group)
    shape = openvino.Shape([size_out, size_in // group, group])
    levels = op.constant(openvino.Tensor(packed, shape, Type.i4), shared_memory=False)
    scaled = op.multiply(op.convert(levels, Type.f32), op.convert(op.constant(scales), Type.f32))
    return op.reshape(scaled, ops.ints(size_out, size_in), False)


def _lookup(table: StoredTensor, ids: Node) -> Node:
    """f32[*ids.shape, H]: rows of a table in 8 bits, widened after they are gathered."""
    levels, scales = (op.gather(op.constant(part), ids, ops.axis(0)) for part in quantize_rows(table))
    return op.multiply(op.convert(levels, Type.f32), scales)


def group_size(size_in: int) -> int:
    """Number of weights in a 4-bit group of a row of `size_in` weights."""
    return min(_GROUP, size_in & -size_in)


def quantize_rows(weight: StoredTensor) -> tuple[Array, Array]:
    """(levels i8[out, in], scales f32[out, 1]), whose product approximates the weights [out, in]."""
    levels, scales = np.empty(weight.shape, np.int8), np.empty((len(weight), 1), np.float32)

    def quantize(rows: slice) -> None:
        values = np.asarray(weight[rows])
        steps = np.abs(values).max(1, keepdims=True) / 127
        scales[rows] = np.where(steps == 0, 1, steps)
        levels[rows] = np.rint(values / scales[rows])

    in_blocks(quantize, weight.shape)
    return levels, scales


def quantize_groups(weight: StoredTensor, group: int) -> tuple[Array, Array]:
    """(levels u8[out * in / 2], scales f16[out, in / group, 1]): two 4-bit levels a byte, the first in its lower half.

    A level times the scale of its group approximates the weight.
    """
    size_out, size_in = weight.shape
    packed = np.empty((size_out, size_in // 2), np.uint8)
    scales = np.empty((size_out, size_in // group, 1), np.float16)

    def quantize(rows: slice) -> None:
        values = np.asarray(weight[rows]).reshape(-1, size_in // group, group)
        levels, scales[rows] = _best_levels(values)
        pairs = levels.reshape(len(values), -1, 2).astype(np.uint8) & 15
        packed[rows] = pairs[..., 0] | pairs[..., 1] << 4

    in_blocks(quantize, weight.shape)
    return packed.reshape(-1), scales


def _best_levels(values: Array) -> tuple[Array, Array]:
    """(levels i8[..., group] from -8 to 7, scales f16[..., 1]) with the least squared error of all `_CLIPS`."""
    farthest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)
    best = np.full(farthest.shape, np.inf, np.float32)
    levels, scales = np.zeros(values.shape, np.int8), np.ones(farthest.shape, np.float16)
    for clip in _CLIPS:
        scale = (farthest * np.float32(clip / -8)).astype(np.float16)
        scale[scale == 0] = 1
        wide = scale.astype(np.float32)
        rounded = np.clip(np.rint(values / wide), -8, 7)
        difference = rounded * wide - values
        error = np.einsum("...g,...g->...", difference, difference)[..., None]
        is_better = error < best
        best, scales = np.where(is_better, error, best), np.where(is_better, scale, scales)
        np.copyto(levels, rounded, where=is_better, casting="unsafe")
    return levels, scales
