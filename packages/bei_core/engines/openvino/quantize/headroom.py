"""int8 weights that do not saturate on any processor.

x86 without VNNI multiplies int8 with `vpmaddubsw`, which adds the products of two adjacent channels in 16 bits and
saturates. The usual remedy, "narrow range", takes one bit from all weights. Most rows do not need that: the weights of
a row and the ranges of its input channels limit these sums. So each row gets the smallest scale that leaves enough
headroom, and one engine serves every processor. The ranges come from the calibration texts; on other texts a few sums
in ten million saturated.

docs/decisions/010-int8.md has measurements.
"""

from __future__ import annotations

import numpy as np

from bei_core.engines.openvino.quantize.smoothquant import Array, SmoothedInput

_MAX_WEIGHT = 127
MAX_ACTIVATION = 255  # activations are quantised to 0..255
_MAX_SUM = 2**15 - 1 - MAX_ACTIVATION  # the rounding of two weights can add MAX_ACTIVATION to a sum


def quantize_with_headroom(weights: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """(integers i8[out, in], steps f32[out, 1]), whose product approximates `weights` f32[out, in].

    `low` and `high` [in] are the range of each channel of the quantised activation, within 0 to 255. For activations in
    that range, no sum of two adjacent products overflows 16 bits.
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
    if x.shape[1] % 2:
        x = np.pad(x, ((0, 0), (0, 1)))
    sums: Array = x[:, ::2] + x[:, 1::2]
    return sums


def levels(smoothed: SmoothedInput, low: float, high: float) -> tuple[Array, Array]:
    """(lowest, highest) quantisation level, 0 to 255, of each channel [in] in the calibration texts."""
    step = (high - low) / MAX_ACTIVATION
    lowest, highest = (np.clip(np.round((x - low) / step), 0, MAX_ACTIVATION) for x in (smoothed.low, smoothed.high))
    return lowest, highest
