"""SmoothQuant (Xiao et al. 2022) with an alpha for each activation.

A few channels of a transformer's activations are much larger than the rest, and int8 has one scale for all channels. So
each channel of an activation is divided by s = max|x|^alpha / max|w|^(1 - alpha), and the channel's weights are
multiplied by s. The matmul's result is the same, and part of the outliers is now in the weights, which have a scale for
each row. The best alpha differs more between the layers of one model than between models, so each activation gets the
alpha with the least error of its matmuls on sampled calibration activations (docs/decisions/010-int8.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from openvino import Model, Node
from openvino import opset15 as op

from bei_core.engines.batch import Batch
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.quantize.blocks import in_blocks, in_parallel
from bei_core.engines.openvino.quantize.parts import run_in_parts
from bei_core.engines.openvino.stored import StoredTensor, stored_values

Array = npt.NDArray[Any]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# The sample on which alphas are tried: every 16th token of the first 8 batches.
_SAMPLE_STRIDE, _NUM_SAMPLED_BATCHES = 16, 8

# Alphas are tried on about this many rows of a matrix. Each row has its own scale, so a part of the rows is enough.
_NUM_SAMPLED_ROWS = 1024


@dataclass(frozen=True, slots=True)
class SharedInput:
    """An activation that is the input of one or several matmuls, with its statistics over the calibration batches."""

    matmuls: list[Node]
    lows: Array  # f32[num_batches, in], minimum of each channel in each batch
    highs: Array  # f32[num_batches, in], maximum of each channel in each batch
    sample: Array  # f32[n, in]

    @property
    def low(self) -> Array:
        """f32[in], minimum of each channel."""
        lowest: Array = self.lows.min(0)
        return lowest

    @property
    def high(self) -> Array:
        """f32[in], maximum of each channel."""
        highest: Array = self.highs.max(0)
        return highest

    def weights(self) -> list[StoredTensor]:
        """[out, in] of each matmul, as stored."""
        return [stored_values(matmul.input_value(1).get_node()) for matmul in self.matmuls]

    def range_of(self, scale: Array) -> tuple[float, float]:
        """(low, high) that int8 represents after the division by `scale`: the mean of the batches' ranges, with 0.

        It is (0, 1) for an activation that is zero in all batches, of which nothing is known.
        """
        low, high = (self.lows / scale).min(1).mean(), (self.highs / scale).max(1).mean()
        return (min(float(low), 0.0), max(float(high), 0.0)) if low or high else (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class SmoothedInput:
    """The input of a matmul after smoothing."""

    error: float  # expected int8 error: mean over tokens of |difference|^2 / |output|^2
    low: Array  # f32[in], minimum of each channel
    high: Array  # f32[in], maximum of each channel


def best_scale(
    shared: SharedInput, weights: Sequence[StoredTensor], alphas: Sequence[float]
) -> tuple[Array, list[float]]:
    """(s f32[in] for the best alpha, expected error of each matmul with it)."""
    inputs = np.maximum(np.abs(shared.low), np.abs(shared.high))
    largest = np.max([_largest(weight) for weight in weights], axis=0)
    scales = [smoothing_scale(inputs, largest, alpha) for alpha in alphas]
    tried = [np.asarray(weight[:: max(1, len(weight) // _NUM_SAMPLED_ROWS)]) for weight in weights]
    errors = [_int8_errors(shared, rows, scales) for rows in tried]
    best = int(np.argmin(np.sum(errors, axis=0)))
    return scales[best], [each[best] for each in errors]


def _largest(weight: StoredTensor) -> Array:
    """f32[in], the largest absolute value of each column."""
    largest: Array = np.max(in_blocks(lambda rows: np.abs(weight[rows]).max(0), weight.shape), axis=0)
    return largest


def smoothing_scale(inputs: Array, weights: Array, alpha: float) -> Array:
    """f32[in], the s by which the activation is divided, from the largest absolute values f32[in] of each channel.

    It is 1 for a channel whose activations or weights are all zero.
    """
    is_zero = (inputs < 1e-6) | (weights < 1e-6)
    scale: Array = np.where(is_zero, 1, inputs) ** alpha / np.where(is_zero, 1, weights) ** (1 - alpha)
    return scale.astype(np.float32)


def _int8_errors(shared: SharedInput, weight: Array, scales: Sequence[Array]) -> list[float]:
    """For each scale, the error of a matmul with rounded activations and weights (see `SmoothedInput.error`).

    Activations are rounded to 256 levels, each row of weights to its own 255.
    """
    exact = shared.sample @ weight.T
    norms = np.maximum((exact**2).sum(1), 1e-12)

    def error(scale: Array) -> float:
        low, high = min(float((shared.low / scale).min()), 0.0), max(float((shared.high / scale).max()), 0.0)
        step = max((high - low) / 255, 1e-12)
        rounded = np.round(np.clip(shared.sample / scale, low, high) / step) * step
        scaled = weight * scale
        steps = np.maximum(np.abs(scaled).max(1, keepdims=True) / 127, 1e-12)
        difference = rounded @ (np.round(scaled / steps) * steps).T - exact
        return float(np.mean((difference**2).sum(1) / norms))

    return in_parallel(error, scales)


def observe(graph: Model, matmuls: Sequence[Node], batches: Sequence[Batch]) -> list[SharedInput]:
    """The inputs of the matmuls, each with the ranges of its channels and a sample."""
    shared: dict[tuple[int, int], list[Node]] = {}
    for matmul in matmuls:
        source = matmul.input_value(0)
        shared.setdefault((source.get_node().get_instance_id(), source.get_index()), []).append(matmul)
    groups = list(shared.values())
    statistics = _run(graph, [group[0].get_friendly_name() for group in groups], batches)
    return [SharedInput(group, *parts) for group, parts in zip(groups, statistics, strict=True)]


def _run(graph: Model, names: Sequence[str], batches: Sequence[Batch]) -> list[tuple[Array, Array, Array]]:
    """(minima and maxima f32[num_batches, in], sample f32[n, in]) of the first input of each of these nodes."""
    probe = graph.clone()
    probe.checkpoint = graph.checkpoint
    nodes = {node.get_friendly_name(): node for node in probe.get_ops()}
    num_outputs = len(probe.outputs)
    probe.add_results([result for name in names for result in _probes(nodes[name].input_value(0))])
    found: list[list[Array]] = [[] for _ in range(3 * len(names))]
    for number, output, values in run_in_parts(probe, batches, "calibrating"):
        index = output - num_outputs
        if index >= 0 and (index % 3 < 2 or number < _NUM_SAMPLED_BATCHES):
            found[index].append(values)
    triples = zip(found[::3], found[1::3], found[2::3], strict=True)
    return [(np.stack(lows), np.stack(highs), np.concatenate(sample)) for lows, highs, sample in triples]


def _probes(x: openvino.Output) -> list[Node]:
    """Graph outputs for `x` [..., in]: minimum f32[in], maximum f32[in], every `_SAMPLE_STRIDE`th vector f32[n, in]."""
    flat = op.reshape(x, ops.ints(-1, x.get_partial_shape()[-1].get_length()), False)
    end = ops.ints(np.iinfo(np.int64).max)
    sample = op.slice(flat, ops.ints(0), end, ops.ints(_SAMPLE_STRIDE), ops.ints(0))
    low, high = op.reduce_min(flat, ops.ints(0), False), op.reduce_max(flat, ops.ints(0), False)
    return [op.result(node) for node in (low, high, sample)]
