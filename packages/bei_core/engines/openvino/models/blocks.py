"""What the transformer families are put together from: inputs, and layers that fetch their own weights by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import Rotation
from bei_core.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Inputs:
    """Graph inputs, i32[R, L] each; a text's positions count from 0."""

    input_ids: Node
    position_ids: Node
    segment_ids: Node
    type_ids: Node

    def mask(self, *, causal: bool = False, window: int | None = None) -> Node:
        """What is added to the scores; see `ops.attention_mask`."""
        return ops.attention_mask(self.segment_ids, self.position_ids, causal=causal, window=window)


class Transformer(Protocol):
    """A family's layers over one checkpoint: a class made of `(config, weights, max_len)`."""

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        ...


@dataclass(frozen=True, slots=True)
class Heads:
    """How a vector of queries, keys or values is divided."""

    queries: int
    keys: int
    size: int

    def split(self, parts: Iterable[Node]) -> list[Node]:
        """Queries [R, N, L, D], keys and values [R, K, L, D] of those of each token, [R, L, N * D] or [R, L, K * D]."""
        numbers = (self.queries, self.keys, self.keys)
        return [ops.split_heads(x, number, self.size) for x, number in zip(parts, numbers, strict=True)]

    @property
    def width(self) -> int:
        """Elements of all queries of a token."""
        return self.queries * self.size


class Layers:
    """A checkpoint's layers by name. A bias is used where the checkpoint has one, and must be there if `bias`."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def linear(self, x: Node, name: str, size_in: int | None, size_out: int | None, *, bias: bool = False) -> Node:
        """[..., out]; None stands for any size."""
        weight = self.weights.get(f"{name}.weight", size_out, size_in)
        return ops.linear(x, weight, self._bias(name, size_out, bias), name)

    def linears(self, x: Node, name: str, sizes: tuple[int, ...], *, bias: bool = False) -> list[Node]:
        """The parts, of these sizes, of one matrix's output: each with a product of its own, which is as fast."""
        weight, shift = self.weights.get(f"{name}.weight", sum(sizes), None), self._bias(name, sum(sizes), bias)
        parts, start = [], 0
        for part, size in enumerate(sizes):
            rows = slice(start, start + size)
            parts.append(ops.linear(x, weight[rows], None if shift is None else shift[rows], f"{name}.{part}"))
            start += size
        return parts

    def layer_norm(self, x: Node, name: str, eps: float, *, bias: bool = True) -> Node:
        """[..., H] normalised."""
        return ops.layer_norm(x, self.weights.get(f"{name}.weight", None), self._bias(name, None, bias), eps)

    def rms_norm(self, x: Node, name: str, eps: float, *, offset: float = 0.0) -> Node:
        """[..., H] normalised; `offset` is added to the stored weight (Gemma's is 1)."""
        return ops.rms_norm(x, self.weights.get(f"{name}.weight", None) + ops.f32(offset), eps)

    def _bias(self, name: str, size: int | None, required: bool) -> ops.Array | None:
        return self.weights.get(f"{name}.bias", size) if required or f"{name}.bias" in self.weights else None


def attend(
    parts: Sequence[Node],
    heads: Heads,
    mask: Node,
    *,
    rotation: Rotation | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Node:
    """[R, L, N * D] of queries [R, N, L, D], and of keys and values [R, K, L, D]."""
    query, key, value = parts
    if rotation is not None:
        query, key = rotation.turn(query), rotation.turn(key)
    key, value = (ops.repeat_heads(x, heads.queries // heads.keys, heads.keys, heads.size) for x in (key, value))
    scale = heads.size**-0.5 if scale is None else scale
    return ops.merge_heads(ops.attention(query, key, value, mask, scale, soft_cap=soft_cap), heads.width)


def gated(gate: Node, up: Node, activation: str) -> Node:
    """Act(gate) * up (Shazeer 2020, GLU variants)."""
    return op.multiply(ops.activation(activation)(gate), up)


def even_heads(hidden: int, number: int) -> Heads:
    """Heads that share the hidden size evenly. Raises UnsupportedModelError where they cannot."""
    if hidden % number:
        raise UnsupportedModelError(f"hidden size {hidden} is not a multiple of {number} heads")
    return Heads(number, number, hidden // number)
