"""Mixtures of experts (Shazeer et al. 2017): each token goes through the few MLPs that a router chooses for it."""

from __future__ import annotations

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Layers
from bei_core.models.sizes import ExpertSizes


def route(x: Node, layers: Layers, name: str, sizes: ExpertSizes) -> Node:
    """f32[R, L, E]: the router's probability of each token's `top_k` likeliest experts, and 0 for all others.

    The probabilities of the chosen experts are not normalised to a sum of 1.
    """
    weight = layers.weights.get(f"{name}.weight", sizes.count, None)
    probabilities = op.softmax(ops.linear(x, weight, None, name), -1)
    chosen = op.topk(probabilities, op.constant(np.int32(sizes.top_k)), -1, "max", "value")
    on, off = op.constant(np.float32(1)), op.constant(np.float32(0))
    one_hot = op.one_hot(chosen.output(1), ops.axis(sizes.count), on, off, -1)  # f32[R, L, K, E]
    return op.reduce_sum(op.multiply(one_hot, op.unsqueeze(chosen.output(0), ops.axis(-1))), ops.ints(2), False)


def mix_experts(x: Node, layers: Layers, name: str, shares: Node, activation: str) -> Node:
    """f32[R, L, H]: the sum of all experts' outputs, each times its share f32[R, L, E], plus one bias for all.

    `{name}.mlp.w1` and `{name}.mlp.w2` f32[E * F, H] hold the experts one after the other. An expert's output is linear
    in its inner vector, so two matmuls compute all experts together; the shares multiply the vectors between them.
    """
    num_experts, hidden = (
        shares.get_output_partial_shape(0)[2].get_length(),
        x.get_output_partial_shape(0)[2].get_length(),
    )
    w1, w2 = (layers.weights.get(f"{name}.mlp.{part}", None, hidden) for part in ("w1", "w2"))
    inner = ops.activation(activation)(ops.linear(x, w1, None, f"{name}.mlp.w1"))
    by_expert = op.reshape(inner, ops.ints(0, 0, num_experts, len(w1) // num_experts), True)
    shared = op.reshape(op.multiply(by_expert, op.unsqueeze(shares, ops.axis(-1))), ops.ints(0, 0, len(w1)), True)
    bias = layers.weights.get(f"{name}.bias", hidden)
    return ops.linear(shared, np.ascontiguousarray(w2.T), bias, f"{name}.mlp.w2")
