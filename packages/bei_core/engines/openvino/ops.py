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

from bei_core.errors import UnsupportedModelError

Array = npt.NDArray[Any]

# Far below any score, and finite also in bf16: a row of nothing but masked scores stays finite.
_MASKED = np.float32(-1e9)


def constant(value: Array) -> Node:
    """A constant of the array's own dtype."""
    return op.constant(np.ascontiguousarray(value))


def f32(value: float) -> np.float32:
    """A number of the dtype that weights have."""
    return np.float32(value)


def ints(*values: int) -> Node:
    """A one-dimensional i64 constant, for axes and shapes."""
    return op.constant(np.array(values, np.int64))


def axis(value: int) -> Node:
    """A scalar i64 constant."""
    return op.constant(np.int64(value))


def embedding(table: Array, ids: Node) -> Node:
    """[*ids, H] rows of an f32[V, H] table."""
    return op.gather(constant(table), ids, axis(0))


def linear(x: Node, weight: Array, bias: Array | None, name: str | None = None) -> Node:
    """[..., out] = x[..., in] @ weight[out, in]ᵀ + bias[out]; the product's node has the name."""
    product = op.matmul(x, constant(weight), False, True, name=name)
    return product if bias is None else op.add(product, constant(bias))


def layer_norm(x: Node, weight: Array, bias: Array | None, eps: float) -> Node:
    """Normalised over the last axis (Ba et al. 2016), scaled, shifted."""
    scaled = op.multiply(op.mvn(x, ints(-1), True, eps, "inside_sqrt"), constant(weight))
    return scaled if bias is None else op.add(scaled, constant(bias))


def rms_norm(x: Node, weight: Array, eps: float) -> Node:
    """Divided by the root mean square over the last axis (Zhang and Sennrich 2019), scaled."""
    mean_square = op.reduce_mean(op.multiply(x, x), ints(-1), True)
    root = op.sqrt(op.add(mean_square, op.constant(np.float32(eps))))
    return op.multiply(op.divide(x, root), constant(weight))


def split_heads(x: Node, num_heads: int, head_size: int) -> Node:
    """[R, L, N * D] to [R, N, L, D]."""
    return op.transpose(op.reshape(x, ints(0, 0, num_heads, head_size), True), ints(0, 2, 1, 3))


def merge_heads(x: Node, width: int) -> Node:
    """[R, N, L, D] to [R, L, width = N * D]."""
    return op.reshape(op.transpose(x, ints(0, 2, 1, 3)), ints(0, 0, width), True)


def repeat_heads(x: Node, times: int, num_heads: int, head_size: int) -> Node:
    """[R, N, L, D] to [R, N * times, L, D], each head so often in a row: grouped queries' keys and values."""
    if times == 1:
        return x
    copies = op.concat([op.unsqueeze(x, axis(2))] * times, 2)
    length = op.gather(op.shape_of(x), ints(2), axis(0))
    shape = op.concat([ints(0, num_heads * times), length, ints(head_size)], 0)
    return op.reshape(copies, shape, True)


def attention(query: Node, key: Node, value: Node, mask: Node, scale: float, *, soft_cap: float | None = None) -> Node:
    """Scaled dot-product attention, all [R, N, L, D], the mask added to the scores and broadcast over them.

    `soft_cap` bounds the scores to cap * tanh(score / cap) before (Gemma 2). Written out rather than as
    ScaledDotProductAttention: the CPU plugin fuses this form into one kernel that was 10% faster here on MiniLM
    (docs/decisions/004-packed-rows.md).
    """
    scores = op.multiply(op.matmul(query, key, False, True), op.constant(np.float32(scale)))
    if soft_cap is not None:
        cap = op.constant(np.float32(soft_cap))
        scores = op.multiply(op.tanh(op.divide(scores, cap)), cap)
    return op.matmul(op.softmax(op.add(scores, mask), -1), value, False, False)


def attention_mask(segment_ids: Node, position_ids: Node, *, causal: bool = False, window: int | None = None) -> Node:
    """f32[R, 1, L, L]: 0 where a token sees another, else far below any score.

    It sees those of its own text, of these only itself and the ones before it where `causal`, and of these only those
    less than `window` places away.
    """
    seen = op.equal(op.unsqueeze(segment_ids, ints(1, 3)), op.unsqueeze(segment_ids, ints(1, 2)))
    distance = op.subtract(op.unsqueeze(position_ids, ints(1, 3)), op.unsqueeze(position_ids, ints(1, 2)))
    if causal:
        seen = op.logical_and(seen, op.greater_equal(distance, op.constant(np.int32(0))))
    if window is not None:
        seen = op.logical_and(seen, op.less(op.abs(distance), op.constant(np.int32(window))))
    return op.select(seen, op.constant(np.float32(0)), op.constant(_MASKED))


def neighbours(x: Node, segment_ids: Node, places: int) -> Node:
    """[R, L, H]: for each token the vector of the one so many places after it; zeros where that is another text's."""
    if places == 0:
        return x
    before, after = max(-places, 0), max(places, 0)

    def moved(values: Node, fill: Node, tail: int) -> Node:
        zeros = [0] * tail
        padded = op.pad(values, ints(0, before, *zeros), ints(0, after, *zeros), "constant", fill)
        begin = after  # of a row that is longer by `before + after`
        length = op.gather(op.shape_of(values), ints(1), axis(0))
        return op.slice(padded, ints(begin), op.add(length, ints(begin)), ints(1), ints(1))

    same = op.equal(segment_ids, moved(segment_ids, op.constant(np.int32(-2)), 0))
    shifted = moved(x, op.constant(np.float32(0)), 1)
    return op.multiply(shifted, op.unsqueeze(op.convert(same, Type.f32), axis(2)))


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
    """The activation that transformers calls `name`. Raises UnsupportedModelError listing the known ones."""
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"unknown activation {name!r}; known are {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


def l2_normalize(x: Node) -> Node:
    """Rows of length 1, by torch's formula x / max(|x|, 1e-12)."""
    norm = op.reduce_l2(x, ints(-1), True)
    return op.divide(x, op.maximum(norm, op.constant(np.float32(1e-12))))


def by_distance(table: Array, max_len: int, length: Node) -> Node:
    """[..., L, L] of a table [..., 2 * max_len - 1]: its element for each distance, key less query, less 1 - max_len.

    In packed rows a text's tokens stand side by side, so the distance of two of them is that of their places in the
    row; what this gives for tokens of different texts is masked anyway.
    """
    places = op.range(axis(0), length, axis(1), Type.i64)
    distance = op.subtract(op.unsqueeze(places, axis(0)), op.unsqueeze(places, axis(1)))
    index = op.clamp(op.add(distance, axis(max_len - 1)), 0, 2 * max_len - 2)
    return op.gather(constant(table), index, axis(table.ndim - 1))


def row_length(ids: Node) -> Node:
    """L of [R, L], a scalar."""
    return op.gather(op.shape_of(ids), axis(1), axis(0))


def relative_bias(table: Array, max_len: int, length: Node, *, max_distance: int = 128) -> Node:
    """f32[1, N, L, L] from a T5-style bucketed table [buckets, N] (transformers' `MPNetEncoder`)."""
    buckets = table[_buckets(np.arange(1 - max_len, max_len), len(table), max_distance)].T
    return op.unsqueeze(by_distance(buckets, max_len, length), axis(0))


def _buckets(relative: Array, num_buckets: int, max_distance: int) -> Array:
    """Bucket of each relative position (key less query): exact when near, logarithmic when far, a half each way."""
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    far = exact + (
        np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(max_distance / exact) * (half - exact)
    ).astype(np.int64)
    return np.where(relative > 0, half, 0) + np.where(distance < exact, distance, np.minimum(far, half - 1))
