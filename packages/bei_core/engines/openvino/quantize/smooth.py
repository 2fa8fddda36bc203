"""SmoothQuant (Xiao et al. 2022) with a share of its own for each activation.

A few channels of a transformer's activations are far larger than the rest, and int8 has one scale for all of them. So
each channel of an activation is divided by s = max|x|^a / max|w|^(1 - a), and the weights that it meets are multiplied
by s: the product is the same, and part of the outliers is the weights' now, which have a scale a row. The best part
differs more between the products of a layer than between models, so `a` is the one of a few that gives the least error
of the products themselves, on activations of the calibration texts (docs/decisions/010-int8.md).
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
from bei_core.engines.openvino.packing import lay_out

Array = npt.NDArray[Any]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# Every so many tokens' vectors are kept of the first so many batches, to try each share on.
_STRIDE, _BATCHES = 16, 8


@dataclass(frozen=True, slots=True)
class Site:
    """An activation, the products that multiply it, and what was seen of it."""

    products: list[Node]
    low: Array  # [in], of each channel
    high: Array
    sample: Array  # [n, in]

    @property
    def weights(self) -> list[Array]:
        """f32[out, in] of each product."""
        return [product.input_value(1).get_node().get_data() for product in self.products]


@dataclass(frozen=True, slots=True)
class Smoothed:
    """What is known of a product once its activation and its weights are scaled."""

    error: float  # to be expected in int8: the mean over tokens of |difference|^2 / |product|^2
    low: Array  # [in], of each channel of the activation
    high: Array


def smooth(
    graph: Model, products: Sequence[Node], batches: Sequence[Batch], alphas: Sequence[float]
) -> dict[str, Smoothed]:
    """Each product by its name; the graph's activations and weights are scaled."""
    smoothed: dict[str, Smoothed] = {}
    for site in _observe(graph, products, batches):
        tried = [scales(site, alpha) for alpha in alphas]
        errors = [[_error(site, weight, scale) for weight in site.weights] for scale in tried]
        best = min(range(len(tried)), key=lambda index: sum(errors[index]))
        low, high = site.low / tried[best], site.high / tried[best]
        for product, error in zip(site.products, errors[best], strict=True):
            smoothed[product.get_friendly_name()] = Smoothed(error, low, high)
        _apply(site, tried[best])
    return smoothed


def scales(site: Site, alpha: float) -> Array:
    """f32[in] that the activation is divided by; 1 of a channel in which nothing happens."""
    inputs = np.maximum(np.abs(site.low), np.abs(site.high))
    weights = np.max([np.abs(weight).max(0) for weight in site.weights], axis=0)
    silent = (inputs < 1e-6) | (weights < 1e-6)
    found: Array = np.where(silent, 1, inputs) ** alpha / np.where(silent, 1, weights) ** (1 - alpha)
    return found.astype(np.float32)


def _error(site: Site, weight: Array, scale: Array) -> float:
    """What rounding does to the product: to the activation by 256 levels, to each row of the weights by its own."""
    low, high = min(float((site.low / scale).min()), 0.0), max(float((site.high / scale).max()), 0.0)
    step = max((high - low) / 255, 1e-12)
    rounded = np.round(np.clip(site.sample / scale, low, high) / step) * step
    scaled = weight * scale
    steps = np.maximum(np.abs(scaled).max(1, keepdims=True) / 127, 1e-12)
    exact = site.sample @ weight.T
    off = rounded @ (np.round(scaled / steps) * steps).T - exact
    return float(np.mean((off**2).sum(1) / np.maximum((exact**2).sum(1), 1e-12)))


def _apply(site: Site, scale: Array) -> None:
    source = site.products[0].input_value(0)
    divided = op.multiply(source, ops.constant(1 / scale), name=f"{site.products[0].get_friendly_name()}.smoothed")
    for product, weight in zip(site.products, site.weights, strict=True):
        product.input(1).replace_source_output(ops.constant(weight * scale).output(0))
        product.input(0).replace_source_output(divided.output(0))


def _observe(graph: Model, products: Sequence[Node], batches: Sequence[Batch]) -> list[Site]:
    """Each activation that products multiply, with the range of its channels over all batches."""
    shared: dict[tuple[int, int], list[Node]] = {}
    for product in products:
        source = product.input_value(0)
        shared.setdefault((source.get_node().get_instance_id(), source.get_index()), []).append(product)
    groups = list(shared.values())
    seen = _run(graph, [group[0].get_friendly_name() for group in groups], batches)
    return [Site(group, *parts) for group, parts in zip(groups, seen, strict=True)]


def _run(graph: Model, names: Sequence[str], batches: Sequence[Batch]) -> list[tuple[Array, Array, Array]]:
    """Lowest and highest of each channel, and sampled vectors, of the first input of each node."""
    probe = graph.clone()
    nodes = {node.get_friendly_name(): node for node in probe.get_ops()}
    count = len(probe.outputs)
    probe.add_results([result for name in names for result in _probes(nodes[name].input_value(0))])
    request = openvino.Core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    lows: list[Array] = []
    highs: list[Array] = []
    samples: list[list[Array]] = [[] for _ in names]
    for index, batch in enumerate(batches):
        request.infer(lay_out(batch).arrays(), share_inputs=True)
        got = [np.array(request.get_output_tensor(count + place).data) for place in range(3 * len(names))]
        lows = [np.minimum(*pair) for pair in zip(lows or got[::3], got[::3], strict=True)]
        highs = [np.maximum(*pair) for pair in zip(highs or got[1::3], got[1::3], strict=True)]
        if index < _BATCHES:
            for kept, rows in zip(samples, got[2::3], strict=True):
                kept.append(rows)
    return [(low, high, np.concatenate(kept)) for low, high, kept in zip(lows, highs, samples, strict=True)]


def _probes(x: openvino.Output) -> list[Node]:
    """Outputs of [..., in]: f32[in] lowest, f32[in] highest, f32[n, in] every so many vectors."""
    flat = op.reshape(x, ops.ints(-1, x.get_partial_shape()[-1].get_length()), False)
    every = op.slice(flat, ops.ints(0), ops.ints(np.iinfo(np.int64).max), ops.ints(_STRIDE), ops.ints(0))
    return [
        op.result(node)
        for node in (op.reduce_min(flat, ops.ints(0), False), op.reduce_max(flat, ops.ints(0), False), every)
    ]
