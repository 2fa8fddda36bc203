"""bfloat16: numbers are rounded to the nearest, and NaN stays NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.bfloat16 import from_bf16, to_bf16
from bei_core.http.schemas.vectors import quantize


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=0, max_value=2.0**120))
def test_bf16_is_the_nearest_of_its_numbers(value: float) -> None:
    bits = int(to_bf16(np.array([value], np.float32))[0])
    around = from_bf16(np.array([max(bits - 1, 0), bits, bits + 1], np.uint16))
    errors = np.abs(around.astype(np.float64) - value)
    assert errors[1] == errors.min()
    assert int(to_bf16(np.array([-value], np.float32))[0]) == bits | 0x8000


def test_bf16_keeps_infinity_and_negative_zero() -> None:
    assert to_bf16(np.array([np.inf, -np.inf, -0.0], np.float32)).tolist() == [0x7F80, 0xFF80, 0x8000]


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFFFFFFFF])
def test_every_nan_stays_nan(bits: int) -> None:
    rows = np.array([[bits]], np.uint32).view(np.float32)
    assert np.isnan(from_bf16(quantize(rows, "bfloat16"))).all()


def test_every_number_of_bf16_is_read_and_written_as_it_is() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = from_bf16(bits)
    written = to_bf16(values)
    assert values.dtype == np.float32
    assert np.array_equal(written[~np.isnan(values)], bits[~np.isnan(values)])
