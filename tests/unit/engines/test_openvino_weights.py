"""Weights in 8 and 4 bits: the levels, their order in memory, and the nodes that widen them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import pytest
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.engines.openvino.quantize import blocks, weights
from bei_core.engines.openvino.quantize.weights import group_size, quantize_groups, quantize_rows
from bei_core.engines.openvino.stored import StoredTensor, lookups
from tests.golden.weights import encode

Array = npt.NDArray[Any]
KINDS = {Type.f32: "F32", Type.bf16: "BF16", Type.f16: "F16"}


def stored(values: Array, kind: Type = Type.f32) -> StoredTensor:
    bits = np.frombuffer(encode(values, KINDS[kind]), np.float32 if kind == Type.f32 else np.uint16)
    return StoredTensor(bits.reshape(values.shape), kind)


def normal(*shape: int) -> Array:
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    values[1] = 0
    return values


def error(approximate: Array, exact: Array) -> float:
    return float(np.sqrt(((approximate - exact) ** 2).sum() / (exact**2).sum()))


def run(output: Node, given: Node, values: Array) -> Array:
    compiled = openvino.Core().compile_model(Model([op.result(output)], [given], "m"), "CPU")
    return np.array(compiled([values])[0])


def test_a_weight_of_8_bits_is_at_most_half_a_step_away() -> None:
    values = normal(40, 70)
    levels, scales = quantize_rows(stored(values))
    assert levels.dtype == np.int8
    assert np.abs(levels).max() == 127
    assert (np.abs(levels * scales - values) <= scales * 0.5001).all()
    assert not levels[1].any()


def test_4_bits_use_all_levels_and_lose_less_than_rounding_of_the_largest_weight_to_7() -> None:
    values = normal(64, 256)
    packed, scales = quantize_groups(stored(values), 128)
    assert packed.nbytes == values.size // 2
    assert scales.shape == (64, 2, 1)
    assert scales.dtype == np.float16
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(64, 2, 128).astype(np.int8)
    levels = np.where(levels > 7, levels - 16, levels)
    assert (levels.min(), levels.max()) == (-8, 7)
    grouped = values.reshape(64, 2, 128)
    steps = np.maximum(np.abs(grouped).max(-1, keepdims=True) / 7, 1e-9)
    assert error(levels * scales.astype(np.float32), grouped) < 0.9 * error(np.rint(grouped / steps) * steps, grouped)


@pytest.mark.parametrize(("size_in", "group"), [(4096, 128), (896, 128), (96, 32), (48, 16), (36, 4), (7, 1)])
def test_a_group_divides_the_row(size_in: int, group: int) -> None:
    assert group_size(size_in) == group


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_multiplies_by_the_quantised_weights(kind: Type, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 1000)  # several blocks, the last one smaller
    values = normal(50, 256)
    node = (weights._in_8_bits if bits == 8 else weights._in_4_bits)(stored(values, kind))
    given = op.parameter([-1, 256], Type.f32)
    found = run(op.matmul(given, node, False, True), given, np.eye(256, dtype=np.float32)).T
    assert error(found, values) < (0.01 if bits == 8 else 0.11)
    assert not found[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_large_table_are_found_and_widened_after_the_lookup(kind: Type) -> None:
    values = normal(16384, 8)
    ids = op.parameter([-1, -1], Type.i32, name="input_ids")
    positions = op.parameter([-1, -1], Type.i32, name="position_ids")
    rows, others = (stored(values, kind).lookup(index) for index in (ids, positions))
    graph = Model([op.result(rows), op.result(others)], [ids, positions], "m")
    [(node, found_ids, table)] = lookups(graph, "input_ids")
    assert node.get_friendly_name() == rows.get_friendly_name()
    np.testing.assert_allclose(np.asarray(table), values, rtol=0.01, atol=1e-6)
    asked = np.array([[1, 7], [16383, 0]], np.int32)
    found = run(weights._lookup(table, found_ids), ids, asked)
    assert error(found, values[asked]) < 0.01
