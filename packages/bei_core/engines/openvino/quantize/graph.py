"""Post-training quantisation of a graph: int8 weights and activations in the transformer's linear layers.

Embeddings, norms, softmax, the matmuls inside attention, pooling, modules and heads are not quantised
(docs/decisions/010-int8.md). `smoothquant` observes the activations and moves their outliers into weights, and
`headroom` chooses weights that cannot saturate. Each activation is quantised together with the matmuls that use it.

A quantised activation q stands for low + step * q. The graph leaves out `low`, so that the processor has no zero point
to subtract: (low + step * q) @ w = step * (q @ w) + low * sum(w), and the second term is added to the bias.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.engines.batch import Batch
from bei_core.engines.calibration import with_progress
from bei_core.engines.openvino import ops
from bei_core.engines.openvino.graph import TOKEN_VECTORS
from bei_core.engines.openvino.quantize.blocks import in_blocks
from bei_core.engines.openvino.quantize.headroom import MAX_ACTIVATION, levels, quantize_with_headroom
from bei_core.engines.openvino.quantize.parts import downstream
from bei_core.engines.openvino.quantize.smoothquant import ALPHAS, SharedInput, SmoothedInput, best_scale, observe
from bei_core.engines.openvino.stored import StoredTensor, is_weight, values_of
from bei_core.errors import UnsupportedModelError

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)


def quantize(
    graph: Model, batches: Sequence[Batch], *, alpha: float | None, mlp_only: bool
) -> dict[str, SmoothedInput]:
    """Quantise the linear layers of `graph` to int8, in place; returns the input of each layer by the layer's name.

    `alpha` is SmoothQuant's; None means the best one for each activation. Raises UnsupportedModelError for a graph
    without linear layers.
    """
    make_names_unique(graph)
    matmuls = linear_matmuls(graph, mlp_only=mlp_only)
    if not matmuls:
        raise UnsupportedModelError("the model has no linear layers to quantise")
    smoothed: dict[str, SmoothedInput] = {}
    for _, shared in with_progress(observe(graph, matmuls, batches), "quantising to int8", "activations"):
        smoothed |= _quantize_input(shared, ALPHAS if alpha is None else (alpha,))
    worst, of_worst = max(smoothed.items(), key=lambda item: item[1].error)
    log.info("int8 for %d linear layers; largest expected error %.2g, in %s", len(smoothed), of_worst.error**0.5, worst)
    return smoothed


def _quantize_input(shared: SharedInput, alphas: Sequence[float]) -> dict[str, SmoothedInput]:
    """Quantise an activation and the weights of the matmuls that use it."""
    weights, first = shared.weights(), shared.matmuls[0]
    scale, errors = best_scale(shared, weights, alphas)
    low, high = shared.range_of(scale)
    divided = op.multiply(first.input_value(0), ops.constant(1 / scale), name=f"{first.get_friendly_name()}.smoothed")
    limits = (op.constant(np.float32(limit)) for limit in (low, high, 0, high - low))
    activation = op.fake_quantize(divided, *limits, MAX_ACTIVATION + 1)
    found = {}
    for matmul, weight, error in zip(shared.matmuls, weights, errors, strict=True):
        smoothed = SmoothedInput(error, shared.low / scale, shared.high / scale)
        found[matmul.get_friendly_name()] = smoothed
        integers, steps = _quantize_weight(weight, scale, *levels(smoothed, low, high))
        dequantized = op.multiply(op.convert(op.constant(integers), Type.f32), op.constant(steps))
        matmul.input(0).replace_source_output(activation.output(0))
        matmul.input(1).replace_source_output(dequantized.output(0))
        _add_to_bias(
            matmul, (low * (integers.sum(1, dtype=np.int64) * steps[:, 0].astype(np.float64))).astype(np.float32)
        )
    return found


def _quantize_weight(weight: StoredTensor, scale: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """(integers, steps) of the weight times `scale`, as `quantize_with_headroom` gives them."""
    blocks = in_blocks(lambda rows: quantize_with_headroom(weight[rows] * scale, low, high), weight.shape)
    integers, steps = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return integers, steps


def _add_to_bias(matmul: Node, constant: Array) -> None:
    """Add f32[out] to the bias that follows a matmul, or insert such a bias."""
    targets = list(matmul.output(0).get_target_inputs())
    after = targets[0].get_node()
    if len(targets) == 1 and after.get_type_name() == "Add":
        other = 1 - targets[0].get_index()
        bias = values_of(after.input_value(other).get_node())
        if bias is not None:
            after.input(other).replace_source_output(op.constant(bias + constant).output(0))
            return
    shifted = op.add(matmul, op.constant(constant))
    for target in targets:
        target.replace_source_output(shifted.output(0))


def linear_matmuls(graph: Model, *, mlp_only: bool = False) -> list[Node]:
    """The MatMul nodes of the transformer's linear layers. If `mlp_only`, attention's layers are left out."""
    nodes = graph.get_ordered_ops()
    last = next(node for node in nodes if node.get_friendly_name() == TOKEN_VECTORS)
    computed = downstream([node for node in nodes if node.get_type_name() == "Parameter"])
    after = downstream([last])
    return [
        node
        for node in nodes
        if node.get_type_name() == "MatMul"
        and is_weight(node.input_value(1).get_node())
        and node.get_instance_id() in computed - after
        and not (mlp_only and _is_attention(node.get_friendly_name()))
    ]


def num_linear_weights(graph: Model) -> int:
    """Number of weights in the transformer's linear layers."""
    return sum(math.prod(matmul.input_value(1).get_shape()) for matmul in linear_matmuls(graph))


def make_names_unique(graph: Model) -> None:
    """Rename nodes that share a name (of weights that are used twice), because a name must identify a layer."""
    seen = Counter[str]()
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        if seen[name]:
            node.set_friendly_name(f"{name}#{seen[name]}")
        seen[name] += 1


def _is_attention(name: str) -> bool:
    """Whether a linear layer belongs to attention. In every family, the tensor's name shows it."""
    return any(part in name.lower() for part in ("attention", "attn", "mixer"))
