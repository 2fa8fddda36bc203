"""Building blocks of encoder graphs, in OpenVINO's opset 15.

Letters: R rows, L tokens a row, T = R * L, B texts, H hidden, N heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import Node, Type
from openvino import opset15 as op

from bei_core.errors import UnsupportedModel

Array = npt.NDArray[Any]

# Far below any score, and finite also in bf16: a row of nothing but masked scores stays finite.
_MASKED = np.float32(-1e9)


def constant(value: Array) -> Node:
    """A constant of the array's own dtype."""
    return op.constant(np.ascontiguousarray(value))


def ints(*values: int) -> Node:
    """A one-dimensional i64 constant, for axes and shapes."""
    return op.constant(np.array(values, np.int64))


def axis(value: int) -> Node:
    """A scalar i64 constant."""
    return op.constant(np.int64(value))


def embedding(table: Array, ids: Node) -> Node:
    """[*ids, H] rows of an f32[V, H] table."""
    return op.gather(constant(table), ids, axis(0))


def linear(x: Node, weight: Array, bias: Array | None) -> Node:
    """[..., out] = x[..., in] @ weight[out, in]ᵀ + bias[out]."""
    product = op.matmul(x, constant(weight), False, True)
    return product if bias is None else op.add(product, constant(bias))


def layer_norm(x: Node, weight: Array, bias: Array | None, eps: float) -> Node:
    """Normalised over the last axis (Ba et al. 2016), scaled, shifted."""
    scaled = op.multiply(op.mvn(x, ints(-1), True, eps, "inside_sqrt"), constant(weight))
    return scaled if bias is None else op.add(scaled, constant(bias))


def split_heads(x: Node, num_heads: int, head_size: int) -> Node:
    """[R, L, N * D] to [R, N, L, D]."""
    return op.transpose(op.reshape(x, ints(0, 0, num_heads, head_size), True), ints(0, 2, 1, 3))


def merge_heads(x: Node, width: int) -> Node:
    """[R, N, L, D] to [R, L, width = N * D]."""
    return op.reshape(op.transpose(x, ints(0, 2, 1, 3)), ints(0, 0, width), True)


def attention(query: Node, key: Node, value: Node, mask: Node, scale: float) -> Node:
    """Scaled dot-product attention, all [R, N, L, D], the mask added to the scores and broadcast over them.

    Written out rather than as ScaledDotProductAttention: the CPU plugin fuses this form into one kernel that was 10%
    faster here on MiniLM (docs/decisions/004-packed-rows.md).
    """
    scores = op.multiply(op.matmul(query, key, False, True), op.constant(np.float32(scale)))
    return op.matmul(op.softmax(op.add(scores, mask), -1), value, False, False)


def same_segment(segment_ids: Node) -> Node:
    """f32[R, 1, L, L]: 0 where two tokens of a row belong to the same text, else far below any score."""
    same = op.equal(op.unsqueeze(segment_ids, ints(1, 3)), op.unsqueeze(segment_ids, ints(1, 2)))
    return op.select(same, op.constant(np.float32(0)), op.constant(_MASKED))


def gelu_new(x: Node) -> Node:
    """GELU by tanh (transformers' `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`)."""
    return op.gelu(x, "tanh")


def quick_gelu(x: Node) -> Node:
    """X * sigmoid(1.702 x)."""
    return op.multiply(x, op.sigmoid(op.multiply(x, op.constant(np.float32(1.702)))))


_ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_python": lambda x: op.gelu(x, "erf"),
    "gelu_new": gelu_new,
    "gelu_fast": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu_python_tanh": gelu_new,
    "gelu_accurate": gelu_new,
    "quick_gelu": quick_gelu,
    "relu": op.relu,
    "silu": op.swish,
    "swish": op.swish,
    "mish": op.mish,
    "tanh": op.tanh,
    "sigmoid": op.sigmoid,
    "identity": lambda x: x,
    "linear": lambda x: x,
}


def activation(name: str) -> Callable[[Node], Node]:
    """The activation that transformers calls `name`. Raises UnsupportedModel listing the known ones."""
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(f"unknown activation {name!r}; known are {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


def l2_normalize(x: Node) -> Node:
    """Rows of length 1, by torch's formula x / max(|x|, 1e-12)."""
    norm = op.reduce_l2(x, ints(-1), True)
    return op.divide(x, op.maximum(norm, op.constant(np.float32(1e-12))))


def relative_bias(table: Array, max_len: int, length: Node, *, max_distance: int = 128) -> Node:
    """f32[1, N, L, L] from a T5-style bucketed table [buckets, N] (transformers' `MPNetEncoder`).

    In packed rows a text's tokens stand side by side, so the distance of two of them is that of their places in the
    row; what this gives for tokens of different texts is masked anyway.
    """
    by_distance = table[_buckets(np.arange(1 - max_len, max_len), len(table), max_distance)].T  # [N, 2 * max_len - 1]
    places = op.range(axis(0), length, axis(1), Type.i64)
    distance = op.subtract(op.unsqueeze(places, axis(0)), op.unsqueeze(places, axis(1)))  # key less query
    index = op.clamp(op.add(distance, axis(max_len - 1)), 0, 2 * max_len - 2)
    return op.unsqueeze(op.gather(constant(by_distance), index, axis(1)), axis(0))


def _buckets(relative: Array, num_buckets: int, max_distance: int) -> Array:
    """Bucket of each relative position (key less query): exact when near, logarithmic when far, a half each way."""
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    far = exact + (
        np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(max_distance / exact) * (half - exact)
    ).astype(np.int64)
    return np.where(relative > 0, half, 0) + np.where(distance < exact, distance, np.minimum(far, half - 1))
