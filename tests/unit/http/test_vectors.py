"""Vectors in types of fewer bits, by hand and by the rules of the libraries that defined them."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from hypothesis.strategies import floats

from bei_core.http.schemas.vectors import as_base64, as_lists, quantize
from bei_core.tasks import Rows

ROW = np.array([[0.5, -0.25, 0.0, 1e-9, -1.0, 0.125, -0.125, 1.0]], np.float32)
SEEDED = np.random.default_rng(7).standard_normal((5, 24)).astype(np.float32)

rows = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=floats(-1, 1, width=32))


def test_bits_by_hand() -> None:
    assert quantize(ROW, "ubinary").tolist() == [[0b10010101]]
    assert quantize(ROW, "binary").tolist() == [[0b10010101 - 128]]
    assert [str(quantize(ROW, kind).dtype) for kind in ("ubinary", "binary")] == ["uint8", "int8"]


def test_bits_come_back() -> None:
    """As the page of Voyage on quantisation says: add 128, unpack."""
    restored = np.unpackbits((quantize(SEEDED, "binary").astype(np.int16) + 128).astype(np.uint8), axis=1)
    assert np.array_equal(restored, SEEDED > 0)


def test_a_width_that_is_no_multiple_of_8_ends_in_zeros() -> None:
    assert quantize(np.ones((1, 10), np.float32), "ubinary").tolist() == [[255, 0b11000000]]


def test_bytes_by_hand() -> None:
    assert quantize(ROW, "int8").tolist() == [[64, -32, 0, 0, -127, 16, -16, 127]]
    assert quantize(ROW, "uint8").tolist() == [[192, 96, 128, 128, 1, 144, 112, 255]]
    assert quantize(np.zeros((1, 3), np.float32), "int8").tolist() == [[0, 0, 0]]


@given(rows)
def test_a_byte_is_at_most_half_a_step_off(found: Rows) -> None:
    scale = np.abs(found).max(axis=1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(quantize(found, "int8") * scale - found) <= scale * 0.501 + 1e-30).all()


@pytest.mark.parametrize(("precision", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_halves_are_rounded_to_the_nearest(precision: str, error: float) -> None:
    found = quantize(SEEDED, precision)  # type: ignore[arg-type]
    if precision == "bfloat16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    assert (np.abs(found - SEEDED) <= error * np.abs(SEEDED)).all()


def test_lists_of_float16_hold_numbers_that_json_can_have() -> None:
    (row,) = as_lists(ROW, "float16")
    assert (str(row.dtype), row[3]) == ("float32", 0)


@given(rows)
def test_base64_is_the_bytes_of_f32(found: Rows) -> None:
    for order in ("<", ">"):
        texts = as_base64(found, order=order)
        decoded = np.array([np.frombuffer(base64.b64decode(text), f"{order}f4") for text in texts])
        assert np.array_equal(decoded, found)
