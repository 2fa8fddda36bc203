"""int8 weights with which no sum of two products exceeds 16 bits."""

from __future__ import annotations

import numpy as np
import pytest

from bei_core.engines.openvino.quantize.headroom import levels, quantize_with_headroom
from bei_core.engines.openvino.quantize.smoothquant import SharedInput, SmoothedInput


@pytest.mark.parametrize("seed", range(8))
def test_no_sum_of_two_products_exceeds_16_bits_and_weights_stay_close(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_in = 33 if seed % 2 else 64
    weights = rng.standard_t(3, (50, num_in)).astype(np.float32)
    low = rng.integers(0, 200, num_in)
    high = rng.integers(low, 256)
    integers, steps = quantize_with_headroom(weights, low, high)
    assert integers.dtype == np.int8
    # Each channel at whichever end makes the sum larger, and at whichever makes it smaller.
    for more, less in ((high, low), (low, high)):
        products = np.where(integers > 0, more, less) * integers.astype(np.int64)
        even, odd = products[:, ::2], products[:, 1::2]
        sums = even + np.pad(odd, ((0, 0), (0, even.shape[1] - odd.shape[1])))
        assert np.abs(sums).max() <= 2**15
    assert (np.abs(integers * steps - weights) <= steps * 0.5001).all()
    assert (np.abs(integers).max(1) >= 63).all(), "never less than 7 bits"


def test_a_row_that_cannot_exceed_16_bits_keeps_all_8() -> None:
    weights = np.array([[1.0, 0.5, -1.0, 0.25], [1.0, 1.0, 0.0, 0.0]], np.float32)
    integers, _ = quantize_with_headroom(weights, np.full(4, 100), np.full(4, 160))
    assert np.abs(integers[0]).max() == 127
    assert integers[1].tolist() == [102, 102, 0, 0], "160 * (102 + 102) is as much as 16 bits hold"


def test_the_range_of_the_activation_decides() -> None:
    weights = np.ones((1, 2), np.float32)
    narrow, _ = quantize_with_headroom(weights, np.zeros(2), np.full(2, 128))
    wide, _ = quantize_with_headroom(weights, np.zeros(2), np.full(2, 255))
    assert narrow.tolist() == [[127, 127]]
    assert wide.tolist() == [[64, 64]]


def test_a_row_of_zeros_is_zero() -> None:
    integers, steps = quantize_with_headroom(np.zeros((1, 4), np.float32), np.zeros(4), np.full(4, 255))
    assert not integers.any()
    assert np.isfinite(steps).all()


def test_an_activation_that_is_zero_in_all_texts_has_a_range() -> None:
    zeros = np.zeros((3, 4), np.float32)
    low, high = SharedInput([], zeros, zeros, zeros).range_of(np.ones(4, np.float32))
    assert low == 0 < high
    lowest, highest = levels(SmoothedInput(0.0, zeros[0], zeros[0]), low, high)
    assert not lowest.any()
    assert not highest.any()
