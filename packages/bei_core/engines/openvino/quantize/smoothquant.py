"""SmoothQuant (Xiao et al. 2022) with an alpha for each activation.

A few channels of a transformer's activations are much larger than the rest, and int8 has one scale for all channels. So
each channel of an activation is divided by s = max|x|^alpha / max|w|^(1 - alpha), and the weights that it meets are
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
from bei_core.engines.openvino.packing import pack_rows

Array = npt.NDArray[Any]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# The sample on which alphas are tried: every 16th token of the first 8 batches.
_SAMPLE_STRIDE, _NUM_SAMPLED_BATCHES = 16, 8


@dataclass(frozen=True, slots=True)
class SharedInput:
    """An activation that is the input of one or several matmuls, with its statistics over the calibration batches."""

    matmuls: list[Node]
    low: Array  # f32[in], minimum of each channel
    high: Array  # f32[in], maximum of each channel
    sample: Array  # f32[n, in]

    @property
    def weights(self) -> list[Array]:
        """f32[out, in] of each matmul."""
        return [matmul.input_value(1).get_node().get_data() for matmul in self.matmuls]


@dataclass(frozen=True, slots=True)
class SmoothedInput:
    """The input of a matmul after smoothing."""

    error: float  # expected int8 error: mean over tokens of |difference|^2 / |output|^2
    low: Array  # f32[in], minimum of each channel
    high: Array  # f32[in], maximum of each channel


def smooth_quant(
    graph: Model, matmuls: Sequence[Node], batches: Sequence[Batch], alphas: Sequence[float]
) -> dict[str, SmoothedInput]:
    """Scales activations and weights in `graph`; returns the smoothed input of each matmul by its friendly name."""
    smoothed: dict[str, SmoothedInput] = {}
    for shared in _observe(graph, matmuls, batches):
        candidates = [smoothing_scale(shared, alpha) for alpha in alphas]
        errors = [[_int8_error(shared, weight, scale) for weight in shared.weights] for scale in candidates]
        best = min(range(len(candidates)), key=lambda index: sum(errors[index]))
        low, high = shared.low / candidates[best], shared.high / candidates[best]
        for matmul, error in zip(shared.matmuls, errors[best], strict=True):
            smoothed[matmul.get_friendly_name()] = SmoothedInput(error, low, high)
        _apply(shared, candidates[best])
    return smoothed


def smoothing_scale(shared: SharedInput, alpha: float) -> Array:
    """f32[in], the s by which the activation is divided; 1 for a channel whose activations or weights are all zero."""
    inputs = np.maximum(np.abs(shared.low), np.abs(shared.high))
    weights = np.max([np.abs(weight).max(0) for weight in shared.weights], axis=0)
    is_zero = (inputs < 1e-6) | (weights < 1e-6)
    scale: Array = np.where(is_zero, 1, inputs) ** alpha / np.where(is_zero, 1, weights) ** (1 - alpha)
    return scale.astype(np.float32)


def _int8_error(shared: SharedInput, weight: Array, scale: Array) -> float:
    """Error of a matmul with activations rounded to 256 levels and each row of weights to its own 255 (see `error`)."""
    low, high = min(float((shared.low / scale).min()), 0.0), max(float((shared.high / scale).max()), 0.0)
    step = max((high - low) / 255, 1e-12)
    rounded = np.round(np.clip(shared.sample / scale, low, high) / step) * step
    scaled = weight * scale
    steps = np.maximum(np.abs(scaled).max(1, keepdims=True) / 127, 1e-12)
    exact = shared.sample @ weight.T
    difference = rounded @ (np.round(scaled / steps) * steps).T - exact
    return float(np.mean((difference**2).sum(1) / np.maximum((exact**2).sum(1), 1e-12)))


def _apply(shared: SharedInput, scale: Array) -> None:
    source, first = shared.matmuls[0].input_value(0), shared.matmuls[0].get_friendly_name()
    divided = op.multiply(source, ops.constant(1 / scale), name=f"{first}.smoothed")
    for matmul, weight in zip(shared.matmuls, shared.weights, strict=True):
        matmul.input(1).replace_source_output(ops.constant(weight * scale).output(0))
        matmul.input(0).replace_source_output(divided.output(0))


def _observe(graph: Model, matmuls: Sequence[Node], batches: Sequence[Batch]) -> list[SharedInput]:
    """The inputs of the matmuls, each with the range of its channels over all batches and a sample."""
    shared: dict[tuple[int, int], list[Node]] = {}
    for matmul in matmuls:
        source = matmul.input_value(0)
        shared.setdefault((source.get_node().get_instance_id(), source.get_index()), []).append(matmul)
    groups = list(shared.values())
    statistics = _run(graph, [group[0].get_friendly_name() for group in groups], batches)
    return [SharedInput(group, *parts) for group, parts in zip(groups, statistics, strict=True)]


def _run(graph: Model, names: Sequence[str], batches: Sequence[Batch]) -> list[tuple[Array, Array, Array]]:
    """(minimum f32[in], maximum f32[in], sample f32[n, in]) of the first input of each of these nodes."""
    probe = graph.clone()
    nodes = {node.get_friendly_name(): node for node in probe.get_ops()}
    num_outputs = len(probe.outputs)
    probe.add_results([result for name in names for result in _probes(nodes[name].input_value(0))])
    request = openvino.Core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    lows: list[Array] = []
    highs: list[Array] = []
    samples: list[list[Array]] = [[] for _ in names]
    for number, batch in enumerate(batches):
        request.infer(pack_rows(batch).graph_inputs(), share_inputs=True)
        outputs = [np.array(request.get_output_tensor(num_outputs + index).data) for index in range(3 * len(names))]
        lows = [np.minimum(*pair) for pair in zip(lows or outputs[::3], outputs[::3], strict=True)]
        highs = [np.maximum(*pair) for pair in zip(highs or outputs[1::3], outputs[1::3], strict=True)]
        if number < _NUM_SAMPLED_BATCHES:
            for sample, rows in zip(samples, outputs[2::3], strict=True):
                sample.append(rows)
    return [(low, high, np.concatenate(sample)) for low, high, sample in zip(lows, highs, samples, strict=True)]


def _probes(x: openvino.Output) -> list[Node]:
    """Graph outputs for `x` [..., in]: minimum f32[in], maximum f32[in], every `_SAMPLE_STRIDE`th vector f32[n, in]."""
    flat = op.reshape(x, ops.ints(-1, x.get_partial_shape()[-1].get_length()), False)
    end = ops.ints(np.iinfo(np.int64).max)
    sample = op.slice(flat, ops.ints(0), end, ops.ints(_SAMPLE_STRIDE), ops.ints(0))
    low, high = op.reduce_min(flat, ops.ints(0), False), op.reduce_max(flat, ops.ints(0), False)
    return [op.result(node) for node in (low, high, sample)]
