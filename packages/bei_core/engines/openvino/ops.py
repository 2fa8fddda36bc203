"""The operations that graphs consist of, in OpenVINO's opset 15. `engines/batch` lists the letters of shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import Node, Type
from openvino import opset15 as op

from bei_core.engines.openvino.stored import StoredTensor
from bei_core.models.distances import relative_buckets
from bei_core.models.heads import find_activation

Array = npt.NDArray[Any]

# Added to a masked score. Finite also in bf16, so that the softmax of a row with all scores masked is not NaN.
_MASKED = np.float32(-1e9)

# Name of the last node of attention, in each layer.
ATTENDED = "attended"


def constant(value: Array) -> Node:
    """A constant with the array's dtype. For a StoredTensor: an f32 node whose constant keeps the stored bits."""
    return value.constant() if isinstance(value, StoredTensor) else op.constant(np.ascontiguousarray(value))


def ints(*values: int) -> Node:
    """A one-dimensional i64 constant, for axes and shapes."""
    return op.constant(np.array(values, np.int64))


def axis(value: int) -> Node:
    """A scalar i64 constant."""
    return op.constant(np.int64(value))


def embedding(table: Array, ids: Node) -> Node:
    """f32[*ids.shape, H]: rows of `table` f32[V, H]."""
    return table.lookup(ids) if isinstance(table, StoredTensor) else op.gather(constant(table), ids, axis(0))


def linear(x: Node, weight: Array, bias: Array | None, name: str | None = None) -> Node:
    """f32[..., out] = x[..., in] @ weight[out, in]ᵀ + bias[out]; `name` is given to the MatMul node."""
    matmul = op.matmul(x, constant(weight), False, True, name=name)
    return matmul if bias is None else op.add(matmul, constant(bias))


def layer_norm(x: Node, weight: Array, bias: Array | None, eps: float) -> Node:
    """LayerNorm over the last axis (Ba et al. 2016); same shape as `x`."""
    scaled = op.multiply(op.mvn(x, ints(-1), True, eps, "inside_sqrt"), constant(weight))
    return scaled if bias is None else op.add(scaled, constant(bias))


def rms_norm(x: Node, weight: Array, eps: float) -> Node:
    """RMSNorm over the last axis (Zhang and Sennrich 2019); same shape as `x`."""
    mean_square = op.reduce_mean(op.multiply(x, x), ints(-1), True)
    root = op.sqrt(op.add(mean_square, op.constant(np.float32(eps))))
    return op.multiply(op.divide(x, root), constant(weight))


def split_heads(x: Node, num_heads: int, head_size: int) -> Node:
    """[R, L, N * S] to [R, N, L, S]."""
    return op.transpose(op.reshape(x, ints(0, 0, num_heads, head_size), True), ints(0, 2, 1, 3))


def merge_heads(x: Node, width: int) -> Node:
    """[R, N, L, S] to [R, L, width = N * S]."""
    return op.reshape(op.transpose(x, ints(0, 2, 1, 3)), ints(0, 0, width), True, name=ATTENDED)


def repeat_heads(x: Node, times: int, num_heads: int, head_size: int) -> Node:
    """[R, K, L, S] to [R, K * times, L, S], for grouped-query attention: torch's `repeat_interleave(x, times, 1)`."""
    if times == 1:
        return x
    copies = op.concat([op.unsqueeze(x, axis(2))] * times, 2)
    length = op.gather(op.shape_of(x), ints(2), axis(0))
    shape = op.concat([ints(0, num_heads * times), length, ints(head_size)], 0)
    return op.reshape(copies, shape, True)


def attention(
    query: Node,
    key: Node,
    value: Node,
    mask: Node,
    scale: float,
    *,
    soft_cap: float | None = None,
    slopes: Array | None = None,
) -> Node:
    """Scaled dot-product attention: f32[R, N, L, S] of query, key and value of that shape.

    `mask` is added to the scores [R, N, L, L]; before that, `soft_cap` makes them soft_cap * tanh(score / soft_cap)
    (Gemma 2). `slopes` [N] multiply the mask, one slope for each head (ALiBi). To save N times the memory of the mask,
    the scores are divided by the slope before the mask is added, and multiplied by the slope afterwards. OpenVINO's
    ScaledDotProductAttention is not used, because the CPU plugin fuses these operations into a kernel that was 10%
    faster on MiniLM (docs/decisions/004-packed-rows.md).
    """
    by_head = None if slopes is None else slopes.astype(np.float32)[:, None, None]
    factor = np.float32(scale) if by_head is None else np.float32(scale) / by_head
    scores = op.multiply(op.matmul(query, key, False, True), op.constant(factor))
    if soft_cap is not None:
        cap = op.constant(np.float32(soft_cap))
        scores = op.multiply(op.tanh(op.divide(scores, cap)), cap)
    scores = op.add(scores, mask)
    if by_head is not None:
        scores = op.multiply(scores, op.constant(by_head))
    return op.matmul(op.softmax(scores, -1), value, False, False)


def same_segment(queries: Node, keys: Node) -> Node:
    """bool[R, 1, L, L']: whether a query (third axis) and a key (last axis) have equal segment ids.

    They are i32[R, L] of queries and i32[R, L'] of keys.
    """
    return op.equal(op.unsqueeze(queries, ints(1, 3)), op.unsqueeze(keys, ints(1, 2)))


def attention_mask(
    allowed: Node, positions: Node, key_positions: Node, *, causal: bool = False, window: int | None = None
) -> Node:
    """f32[R, 1, L, L'], to be added to scores: 0 where a query (third axis) may attend to a key (last axis), else -1e9.

    `allowed`, bool[R, 1, L, L'], must be true. If `causal`, the key must not come after the query. If `window` is set,
    they must be less than `window` positions apart. The positions are i32[R, L] of queries and i32[R, L'] of keys.
    """
    distance = op.subtract(op.unsqueeze(positions, ints(1, 3)), op.unsqueeze(key_positions, ints(1, 2)))
    if causal:
        allowed = op.logical_and(allowed, op.greater_equal(distance, op.constant(np.int32(0))))
    if window is not None:
        allowed = op.logical_and(allowed, op.less(op.abs(distance), op.constant(np.int32(window))))
    return op.select(allowed, op.constant(np.float32(0)), op.constant(_MASKED))


def gather_tokens(x: Node, indices: Node) -> Node:
    """[R, L', ...]: the tokens of `x` [R, L, ...] whose indices into its R * L tokens are i32[R, L']."""
    rest = x.get_output_partial_shape(0)[2:]
    flat = op.reshape(x, ints(-1, *(size.get_length() for size in rest)), False)
    return op.gather(flat, indices, axis(0))


def split_at(x: Node, index: Node) -> tuple[Node, Node]:
    """`x[:index]` and `x[index:]`; the index is i64[1]."""
    # Not the largest i64: the CPU plugin makes -1 of it when it keeps a compiled model, which drops the last item.
    end, step = op.gather(op.shape_of(x), ints(0), axis(0)), ints(1)
    return op.slice(x, ints(0), index, step, ints(0)), op.slice(x, index, end, step, ints(0))


def distances(position_ids: Node) -> Node:
    """f32[R, 1, L, L]: the distance of two tokens' positions i32[R, L]; only for tokens of the same sequence."""
    difference = op.subtract(op.unsqueeze(position_ids, ints(1, 3)), op.unsqueeze(position_ids, ints(1, 2)))
    return op.convert(op.abs(difference), Type.f32)


def count_up(counted: Node, position_ids: Node) -> Node:
    """i32[R, L]: how many tokens of its sequence are counted, up to and with each token; 0 if it is not counted itself.

    `counted` is bool[R, L]. The positions i32[R, L] count all tokens of a sequence from 0. Each sequence is whole in
    its row: none shares a prefix.
    """
    ones = op.convert(counted, Type.i32)
    before = op.cumsum(ones, axis(1), exclusive=True)
    starts = op.subtract(op.range(op.constant(np.int32(0)), row_length(ones), axis(1), Type.i32), position_ids)
    # Not a Gather with batch_dims, which crashes the CPU plugin if the indices are a constant.
    before = op.subtract(before, op.gather_elements(before, starts, axis=1))
    return op.multiply(op.add(before, op.constant(np.int32(1))), ones)


def shift_tokens(x: Node, segment_ids: Node, offset: int) -> Node:
    """f32[R, L, H]: `x[:, i + offset]` at index i; zeros if that is outside the row or in another sequence."""
    if offset == 0:
        return x
    before, after = max(-offset, 0), max(offset, 0)

    def shift(values: Node, fill: Node, num_other_axes: int) -> Node:
        zeros = [0] * num_other_axes
        padded = op.pad(values, ints(0, before, *zeros), ints(0, after, *zeros), "constant", fill)
        length = op.gather(op.shape_of(values), ints(1), axis(0))
        return op.slice(padded, ints(after), op.add(length, ints(after)), ints(1), ints(1))

    same = op.equal(segment_ids, shift(segment_ids, op.constant(np.int32(-2)), 0))
    shifted = shift(x, op.constant(np.float32(0)), 1)
    return op.multiply(shifted, op.unsqueeze(op.convert(same, Type.f32), axis(2)))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017

_ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_tanh": lambda x: op.gelu(x, "tanh"),
    "quick_gelu": lambda x: op.multiply(x, op.sigmoid(op.multiply(x, op.constant(np.float32(1.702))))),
    "relu": op.relu,
    "silu": op.swish,
    "mish": op.mish,
    "tanh": op.tanh,
    "sigmoid": op.sigmoid,
    "identity": lambda x: x,
    # Activations of Dense modules: torch.nn's classes with their default arguments.
    "elu": lambda x: op.elu(x, 1.0),
    "hardswish": op.hswish,
    "leaky_relu": lambda x: op.prelu(x, op.constant(np.float32(0.01))),
    "relu6": lambda x: op.clamp(x, 0.0, 6.0),
    "selu": lambda x: op.selu(x, op.constant(np.float32(_SELU_ALPHA)), op.constant(np.float32(_SELU_SCALE))),
    "softplus": op.softplus,
    "softsign": op.softsign,
}


def activation(name: str) -> Callable[[Node], Node]:
    """As `models.heads.find_activation`."""
    return find_activation(name, _ACTIVATIONS)


def l2_normalize(x: Node) -> Node:
    """L2-normalised over the last axis, as `torch.nn.functional.normalize`: x / max(|x|, 1e-12)."""
    norm = op.reduce_l2(x, ints(-1), True)
    return op.divide(x, op.maximum(norm, op.constant(np.float32(1e-12))))


def gather_by_distance(table: Array, max_len: int, length: Node) -> Node:
    """[..., L, L]: `table[..., key - query + max_len - 1]` for each pair (query, key) of indices in a row.

    `table` is [..., 2 * max_len - 1], `length` is the scalar L. A sequence's tokens are contiguous in a packed row, so
    the distance of their indices is the distance of their positions. Pairs of different sequences are masked later.
    """
    indices = op.range(axis(0), length, axis(1), Type.i64)
    distance = op.subtract(op.unsqueeze(indices, axis(0)), op.unsqueeze(indices, axis(1)))
    index = op.clamp(op.add(distance, axis(max_len - 1)), 0, 2 * max_len - 2)
    return op.gather(constant(table), index, axis(table.ndim - 1))


def row_length(ids: Node) -> Node:
    """L of `ids` [R, L], an i64 scalar."""
    return op.gather(op.shape_of(ids), axis(1), axis(0))


def relative_bias(table: Array, max_len: int, length: Node, *, max_distance: int = 128) -> Node:
    """f32[1, N, L, L]: bias from a table f32[num_buckets, N] (transformers' `MPNetEncoder.compute_position_bias`)."""
    biases = table[relative_buckets(np.arange(1 - max_len, max_len), len(table), max_distance)].T
    return op.unsqueeze(gather_by_distance(biases, max_len, length), axis(0))
