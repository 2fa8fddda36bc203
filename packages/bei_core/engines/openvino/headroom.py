"""Room in int8 weights, so that sums of two products fit into 16 bits on any processor.

x86 without VNNI multiplies 8 bits by 8 and adds each two neighbours up in 16 bits, which saturate (`vpmaddubsw`). The
usual remedy is weights of 7 bits. Most rows do not need it: how large two neighbours can get follows from the weights
of the row and from the range of each channel. So each row is rounded as finely as its own largest two neighbours allow,
which costs next to nothing, and one engine is right on every processor (docs/decisions/010-int8.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from openvino import Model, Node
from openvino import opset15 as op

from bei_core.engines.openvino.smooth import Array, Smoothed

_LARGEST_WEIGHT = 127
_LARGEST_CODE = 255  # of an activation
_LARGEST_SUM = 2**15 - 1 - _LARGEST_CODE  # less what rounding two weights may add to their sum


def leave_headroom(model: Model, graph: Model, smoothed: Mapping[str, Smoothed]) -> None:
    """Rounds the int8 weights of `model`, which nncf has made of `graph`, once more from those of `graph`."""
    exact = {node.get_friendly_name(): node.input_value(1).get_node() for node in _products(graph, smoothed)}
    for node in list(_products(model, smoothed)):
        activation, scaled = (node.input_value(index).get_node() for index in (0, 1))
        if activation.get_type_name() != "FakeQuantize" or scaled.get_type_name() != "Multiply":
            continue  # nncf has left it as it is
        name = node.get_friendly_name()
        integers, steps = rounded(exact[name].get_data(), *_codes(activation, smoothed[name]))
        widened, scale = (scaled.input_value(index).get_node() for index in (0, 1))
        widened.input(0).replace_source_output(op.constant(integers).output(0))
        scaled.input(1).replace_source_output(op.constant(steps.astype(scale.get_data().dtype)).output(0))


def rounded(weights: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """i8[out, in] and f32[out, 1], whose product is nearly `weights`, f32[out, in].

    `low` and `high`, [in], are the least and the largest code, 0 to 255, of each channel of the activation: no two
    neighbours' codes within them, times their integers, add up to more than 16 bits hold.
    """
    steps = np.abs(weights).max(1, keepdims=True) / _LARGEST_WEIGHT
    steps = np.where(steps == 0, 1, steps)
    scaled = weights / steps
    most = _pairs(scaled * np.where(scaled > 0, high, low)).max(1, keepdims=True)
    least = _pairs(scaled * np.where(scaled > 0, low, high)).min(1, keepdims=True)
    room = np.maximum(np.maximum(most, -least) / _LARGEST_SUM, 1)
    return np.round(scaled / room).astype(np.int8), (steps * room).astype(np.float32)


def _pairs(x: Array) -> Array:
    """[out, in] to [out, ceil(in / 2)]: the sums of neighbours."""
    sums: Array = np.add.reduceat(x, np.arange(0, x.shape[1], 2), axis=1)
    return sums


def _codes(activation: Node, seen: Smoothed) -> tuple[Array, Array]:
    """The least and the largest code of each channel in the calibration's texts."""
    low, high = (float(activation.input_value(index).get_node().get_data().min()) for index in (1, 2))
    step = (high - low) / _LARGEST_CODE
    least, most = (np.clip(np.round((x - low) / step), 0, _LARGEST_CODE) for x in (seen.low, seen.high))
    return least, most


def _products(model: Model, smoothed: Mapping[str, Smoothed]) -> Iterator[Node]:
    return (node for node in model.get_ops() if node.get_friendly_name() in smoothed)
