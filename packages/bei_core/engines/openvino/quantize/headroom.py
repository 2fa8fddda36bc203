"""Two corrections of nncf's int8 linear layers: weights that cannot saturate, and activations without a zero point.

Headroom. x86 without VNNI multiplies int8 with `vpmaddubsw`, which adds two neighbouring products in 16 bits and
saturates. The usual remedy, "narrow range", takes one bit from all weights. Most rows do not need that: the largest
sum of two neighbours follows from the row's weights and the range of each input channel. So each row gets the smallest
scale that leaves enough headroom, and one engine serves every processor. The ranges come from the calibration texts;
on other texts a few sums in ten million saturated.

Zero points. A quantised activation q stands for low + step * q, and nncf makes every matmul subtract the zero point.
But (low + step * q) @ w = step * (q @ w) + low * sum(w), and the second term is a constant: it is added to the bias.

docs/decisions/010-int8.md has measurements of both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
from openvino import Model, Node
from openvino import opset15 as op

from bei_core.engines.openvino.quantize.smoothquant import Array, SmoothedInput

log = logging.getLogger(__name__)

_MAX_WEIGHT = 127
_MAX_ACTIVATION = 255  # activations are quantised to 0..255
_MAX_SUM = 2**15 - 1 - _MAX_ACTIVATION  # minus what rounding two weights can add to their sum


def requantize(model: Model, graph: Model, smoothed: Mapping[str, SmoothedInput]) -> None:
    """Requantises the weights of `model`, which nncf made from `graph`, with headroom; removes zero points."""
    exact = {node.get_friendly_name(): node.input_value(1).get_node() for node in _matmuls(graph, smoothed)}
    for node in list(_matmuls(model, smoothed)):
        activation, scaled = (node.input_value(index).get_node() for index in (0, 1))
        name = node.get_friendly_name()
        if activation.get_type_name() != "FakeQuantize" or scaled.get_type_name() != "Multiply":
            log.warning("nncf did not quantise the linear layer %s: it stays in full precision", name)
            continue
        low, high = (float(_constant(activation, index).min()) for index in (1, 2))
        integers, steps = quantize_with_headroom(exact[name].get_data(), *_levels(smoothed[name], low, high))
        _replace(scaled.input_value(0).get_node(), 0, integers)
        _replace(scaled, 1, steps.astype(_constant(scaled, 1).dtype))
        _replace(activation, 3, np.float32(0))
        _replace(activation, 4, np.float32(high - low))
        _add_to_bias(node, (low * (integers * steps.astype(np.float64)).sum(1)).astype(np.float32))


def quantize_with_headroom(weights: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """(integers i8[out, in], steps f32[out, 1]), whose product approximates `weights` f32[out, in].

    `low` and `high` [in] are the range of each channel of the quantised activation, within 0 to 255. For activations in
    that range, no sum of two neighbouring products overflows 16 bits.
    """
    steps = np.abs(weights).max(1, keepdims=True) / _MAX_WEIGHT
    steps = np.where(steps == 0, 1, steps)
    scaled = weights / steps
    largest = _pair_sums(scaled * np.where(scaled > 0, high, low)).max(1, keepdims=True)
    smallest = _pair_sums(scaled * np.where(scaled > 0, low, high)).min(1, keepdims=True)
    excess = np.maximum(np.maximum(largest, -smallest) / _MAX_SUM, 1)
    return np.round(scaled / excess).astype(np.int8), (steps * excess).astype(np.float32)


def _pair_sums(x: Array) -> Array:
    """[out, ceil(in / 2)] of [out, in]: sums of columns 0 and 1, 2 and 3, and so on."""
    sums: Array = np.add.reduceat(x, np.arange(0, x.shape[1], 2), axis=1)
    return sums


def _levels(smoothed: SmoothedInput, low: float, high: float) -> tuple[Array, Array]:
    """(lowest, highest) quantisation level, 0 to 255, of each channel [in] in the calibration texts."""
    step = (high - low) / _MAX_ACTIVATION
    lowest, highest = (np.clip(np.round((x - low) / step), 0, _MAX_ACTIVATION) for x in (smoothed.low, smoothed.high))
    return lowest, highest


def _add_to_bias(matmul: Node, constant: Array) -> None:
    """Adds f32[out] to the bias that follows a matmul, or inserts such a bias."""
    targets = list(matmul.output(0).get_target_inputs())
    after = targets[0].get_node()
    if len(targets) == 1 and after.get_type_name() == "Add":
        other = 1 - targets[0].get_index()
        if after.input_value(other).get_node().get_type_name() == "Constant":
            _replace(after, other, _constant(after, other) + constant)
            return
    shifted = op.add(matmul, op.constant(constant))
    for target in targets:
        target.replace_source_output(shifted.output(0))


def _constant(node: Node, index: int) -> Array:
    value: Array = node.input_value(index).get_node().get_data()
    return value


def _replace(node: Node, index: int, value: Array | np.float32) -> None:
    node.input(index).replace_source_output(op.constant(value).output(0))


def _matmuls(model: Model, smoothed: Mapping[str, SmoothedInput]) -> Iterator[Node]:
    return (node for node in model.get_ops() if node.get_friendly_name() in smoothed)
