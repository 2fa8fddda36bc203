"""Pooling inside the graph: token vectors f32[R * L, H] to one row per sequence f32[B, H].

The modes are the rows of `models/pooling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openvino import Node, Type
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.models.head_tensors import pooling_modes
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Spans:
    """The position of each sequence's pooled tokens among the R * L tokens."""

    starts: Node  # i32[B], index of the first token
    lengths: Node  # i32[B], number of tokens, at least 1

    def offsets(self, x: Node) -> Node:
        """i32[B, R * L]: index of each token of `x`, counted from the first pooled token of the sequence."""
        num_tokens = op.gather(op.shape_of(x, Type.i32), ops.axis(0), ops.axis(0))
        return op.subtract(_range_row(num_tokens), _column(self.starts))

    def contains(self, offsets: Node) -> Node:
        """bool[B, R * L]: whether a token is a pooled token of the sequence."""
        return op.logical_and(op.greater_equal(offsets, _i32(0)), op.less(offsets, _column(self.lengths)))


def pool(mode: str, x: Node, spans: Spans) -> Node:
    """f32[B, H] of token vectors f32[R * L, H]; `mode` is any name that `PoolingMode.named` knows."""
    return POOLINGS[PoolingMode.named(mode)](x, spans)


def pooled_rows(spec: ModelSpec, x: Node, spans: Spans) -> Node | None:
    """f32[B, H], or wider for several modes, of token vectors f32[R * L, H]; None if the model does not pool them."""
    pooled = [pool(mode, x, spans) for mode in pooling_modes(spec) if mode]
    return op.concat(pooled, -1) if pooled else None


def pooled_token(spec: ModelSpec, ids: Node, spans: Spans) -> Node | None:
    """i32[B]: index of the one token of each sequence that pooling reads; None if it reads other tokens, too.

    `ids` are i32[R * L].
    """
    modes = pooling_modes(spec)
    if len(modes) != 1:
        return None
    if modes[0] is None:
        return _last_non_padding_token(ids, spans, int(spec.config["pad_token_id"]))
    known = {PoolingMode.CLS: _first_token, PoolingMode.LAST_TOKEN: _last_token}
    return known[modes[0]](spans) if modes[0] in known else None


def _first_token(spans: Spans) -> Node:
    """i32[B]: the index of each sequence's first pooled token."""
    return spans.starts


def _last_token(spans: Spans) -> Node:
    """i32[B]: the index of each sequence's last pooled token."""
    return op.subtract(op.add(spans.starts, spans.lengths), _i32(1))


def _last_non_padding_token(ids: Node, spans: Spans, pad_id: int) -> Node:
    """i32[B]: the index of each sequence's last token whose id is not `pad_id`, else of its first token.

    As in the decoder classifiers of transformers (`GenericForSequenceClassification`). `ids` are i32[R * L].
    """
    offsets = spans.offsets(ids)
    real = op.logical_and(spans.contains(offsets), op.not_equal(op.unsqueeze(ids, ops.axis(0)), _i32(pad_id)))
    return op.add(spans.starts, op.reduce_max(op.select(real, offsets, _i32(0)), ops.ints(1), False))


def _column(x: Node) -> Node:
    """[B] to [B, 1]."""
    return op.unsqueeze(x, ops.axis(1))


def _range_row(stop: Node) -> Node:
    """i32[1, stop]: 0, 1, ..., stop - 1."""
    return op.unsqueeze(op.range(_i32(0), stop, _i32(1), Type.i32), ops.axis(0))


def _i32(value: int) -> Node:
    return op.constant(value, Type.i32)


def _float(x: Node) -> Node:
    return op.convert(x, Type.f32)


def total(x: Node, spans: Spans) -> Node:
    """f32[B, H]: the sum of each sequence's pooled token vectors."""
    return op.matmul(_float(spans.contains(spans.offsets(x))), x, False, False)


def _mean(x: Node, spans: Spans) -> Node:
    return op.divide(total(x, spans), _float(_column(spans.lengths)))


def _mean_sqrt_len(x: Node, spans: Spans) -> Node:
    return op.divide(total(x, spans), op.sqrt(_float(_column(spans.lengths))))


def _weighted_mean(x: Node, spans: Spans) -> Node:
    """Mean in which token i (from 0) has the weight i + 1 (Muennighoff 2022, SGPT)."""
    offsets = spans.offsets(x)
    weights = op.multiply(_float(spans.contains(offsets)), _float(op.add(offsets, _i32(1))))
    return op.divide(op.matmul(weights, x, False, False), op.reduce_sum(weights, ops.ints(1), True))


def _max(x: Node, spans: Spans) -> Node:
    """Maximum over each sequence, padded to the longest one with copies of its last token."""
    longest = op.reduce_max(spans.lengths, ops.axis(0), False)
    last = op.subtract(_column(spans.lengths), _i32(1))
    index = op.add(_column(spans.starts), op.minimum(_range_row(longest), last))
    return op.reduce_max(op.gather(x, index, ops.axis(0)), ops.ints(1), False)


def _cls(x: Node, spans: Spans) -> Node:
    return op.gather(x, _first_token(spans), ops.axis(0))


def _last(x: Node, spans: Spans) -> Node:
    return op.gather(x, _last_token(spans), ops.axis(0))


POOLINGS: Mapping[PoolingMode, Callable[[Node, Spans], Node]] = {
    PoolingMode.CLS: _cls,
    PoolingMode.MAX: _max,
    PoolingMode.MEAN: _mean,
    PoolingMode.MEAN_SQRT_LEN: _mean_sqrt_len,
    PoolingMode.WEIGHTED_MEAN: _weighted_mean,
    PoolingMode.LAST_TOKEN: _last,
}
