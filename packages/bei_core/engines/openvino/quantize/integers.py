"""What nncf's int8 products still need: to be as exact on every processor, and quick.

Room in weights. x86 without VNNI multiplies 8 bits by 8 and adds each two neighbours up in 16 bits, which saturate
(`vpmaddubsw`). The usual remedy is weights of 7 bits. Most rows do not need it: how large two neighbours can get
follows from the weights of the row and from the range of each channel. So each row is rounded as finely as its own
largest two neighbours allow, which costs next to nothing, and one engine serves all processors. That is as sure as the
calibration's texts show what channels can hold: of others a sum in millions may saturate.

Activations that begin at zero. A code c stands for low + step * c, and nncf has every product subtract the zero point
from its sums. But (low + step * c) @ w is step * (c @ w) and a constant, low * sum(w), which belongs to the bias.

docs/decisions/010-int8.md has what both give.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
from openvino import Model, Node
from openvino import opset15 as op

from bei_core.engines.openvino.quantize.smooth import Array, Smoothed

log = logging.getLogger(__name__)

_LARGEST_WEIGHT = 127
_LARGEST_CODE = 255  # of an activation
_LARGEST_SUM = 2**15 - 1 - _LARGEST_CODE  # less what rounding two weights may add to their sum


def finish(model: Model, graph: Model, smoothed: Mapping[str, Smoothed]) -> None:
    """Rounds the weights of `model`, which nncf has made of `graph`, once more; lets its activations begin at zero."""
    exact = {node.get_friendly_name(): node.input_value(1).get_node() for node in _products(graph, smoothed)}
    for node in list(_products(model, smoothed)):
        activation, scaled = (node.input_value(index).get_node() for index in (0, 1))
        name = node.get_friendly_name()
        if activation.get_type_name() != "FakeQuantize" or scaled.get_type_name() != "Multiply":
            log.warning("nncf has not quantised %s", name)
            continue
        low, high = (float(_constant(activation, index).min()) for index in (1, 2))
        integers, steps = rounded(exact[name].get_data(), *_codes(smoothed[name], low, high))
        _replace(scaled.input_value(0).get_node(), 0, integers)
        _replace(scaled, 1, steps.astype(_constant(scaled, 1).dtype))
        _replace(activation, 3, np.float32(0))
        _replace(activation, 4, np.float32(high - low))
        _add(node, (low * (integers * steps.astype(np.float64)).sum(1)).astype(np.float32))


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


def _codes(seen: Smoothed, low: float, high: float) -> tuple[Array, Array]:
    """The least and the largest code of each channel in the calibration's texts."""
    step = (high - low) / _LARGEST_CODE
    least, most = (np.clip(np.round((x - low) / step), 0, _LARGEST_CODE) for x in (seen.low, seen.high))
    return least, most


def _add(product: Node, constant: Array) -> None:
    """Adds f32[out] to a product: to its bias where it has one."""
    targets = list(product.output(0).get_target_inputs())
    after = targets[0].get_node()
    if len(targets) == 1 and after.get_type_name() == "Add":
        other = 1 - targets[0].get_index()
        if after.input_value(other).get_node().get_type_name() == "Constant":
            _replace(after, other, _constant(after, other) + constant)
            return
    shifted = op.add(product, op.constant(constant))
    for target in targets:
        target.replace_source_output(shifted.output(0))


def _constant(node: Node, index: int) -> Array:
    found: Array = node.input_value(index).get_node().get_data()
    return found


def _replace(node: Node, index: int, value: Array | np.float32) -> None:
    node.input(index).replace_source_output(op.constant(value).output(0))


def _products(model: Model, smoothed: Mapping[str, Smoothed]) -> Iterator[Node]:
    return (node for node in model.get_ops() if node.get_friendly_name() in smoothed)
