"""`compare` fails for each kind of wrong row; otherwise no golden test would prove anything."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.golden.tolerance import BF16, BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, Tolerance, compare, compare_logits

Rows = npt.NDArray[np.float32]
TOLERANCES = pytest.mark.parametrize("tolerance", [F32, BF16], ids=lambda tolerance: tolerance.name)


def unit_rows(num_rows: int = 6, width: int = 32) -> Rows:
    rows = np.random.default_rng(7).standard_normal((num_rows, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def turned(rows: Rows, cosine: float) -> Rows:
    """The rows at that cosine to themselves, with their own norms."""
    other = np.roll(rows, 1, axis=1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    across = other - rows * (other * rows).sum(axis=1, keepdims=True) / norms**2
    across *= norms / np.linalg.norm(across, axis=1, keepdims=True)
    result: Rows = (cosine * rows + np.sqrt(1 - cosine**2) * across).astype(np.float32)
    return result


@TOLERANCES
def test_equal_rows_pass_with_nothing_wrong(tolerance: Tolerance) -> None:
    figures = compare(unit_rows(), unit_rows(), tolerance)
    assert figures.cosine == pytest.approx(1, abs=1e-7)
    assert figures.max_abs == figures.norm_error == 0


def test_the_worst_of_each_figure_comes_back() -> None:
    expected = unit_rows()
    actual = expected.copy()
    actual[2] *= np.float32(1.00005)
    actual[4, 0] += np.float32(2e-5)
    figures = compare(actual, expected, F32)
    assert figures.norm_error == pytest.approx(5e-5, rel=0.01)
    assert figures.max_abs == pytest.approx(2e-5, rel=0.5)


@pytest.mark.parametrize(
    ("tolerance", "passes", "fails"), [(F32, 0.999999995, 0.99998), (BF16, 0.9996, 0.9994)], ids=["f32", "bf16"]
)
def test_a_turned_row_fails_beyond_the_cosine_limit(tolerance: Tolerance, passes: float, fails: float) -> None:
    expected = unit_rows()
    compare(turned(expected, passes), expected, tolerance)
    with pytest.raises(AssertionError, match="6 of 6 rows"):
        compare(turned(expected, fails), expected, tolerance)


def test_one_row_may_be_far_off_in_bf16_but_not_all() -> None:
    expected = unit_rows()
    actual = turned(expected, 0.99999)
    actual[2] = turned(expected, 0.9985)[2]
    compare(actual, expected, BF16_WIDE)
    with pytest.raises(AssertionError, match=r"the mean cosine 0\.9985.* is outside bf16, wide"):
        compare(turned(expected, 0.9985), expected, BF16_WIDE)


def test_one_wrong_element_of_a_long_row_fails_f32() -> None:
    expected = unit_rows(width=4096)
    actual = expected.copy()
    actual[3, 1234] += np.float32(2e-4)
    with pytest.raises(AssertionError, match=r"row 3 .*max-abs 0\.0002 "):
        compare(actual, expected, F32)


@TOLERANCES
def test_normalised_rows_of_another_length_fail(tolerance: Tolerance) -> None:
    expected = unit_rows()
    actual = expected.copy()
    actual[1] *= np.float32(1.002)
    with pytest.raises(AssertionError, match=r"row 1 .*norm error 0\.002 "):
        compare(actual, expected, tolerance)


def test_other_rows_may_be_off_by_a_share_of_their_length_in_bf16() -> None:
    expected = 20 * unit_rows()
    compare(expected * np.float32(1.005), expected, BF16)
    with pytest.raises(AssertionError, match=r"norm error 0\.02 \(<= 0\.01\)"):
        compare(expected * np.float32(1.02), expected, BF16)


@TOLERANCES
def test_rows_that_changed_places_fail(tolerance: Tolerance) -> None:
    expected = unit_rows()
    actual = expected.copy()
    actual[[0, 5]] = actual[[5, 0]]
    with pytest.raises(AssertionError, match="2 of 6 rows"):
        compare(actual, expected, tolerance)


@TOLERANCES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_and_is_the_worst(tolerance: Tolerance, value: float) -> None:
    expected = unit_rows()
    actual = -expected
    actual[4, 0] = value
    with pytest.raises(AssertionError, match="row 4 "):
        compare(actual, expected, tolerance)


@TOLERANCES
def test_rows_of_zeros_fail_unless_they_were_expected(tolerance: Tolerance) -> None:
    zeros = np.zeros((1, 32), np.float32)
    compare(zeros, zeros, tolerance)
    with pytest.raises(AssertionError, match="row 0 "):
        compare(zeros, unit_rows(1), tolerance)
    with pytest.raises(AssertionError, match="row 0 "):
        compare(unit_rows(1), zeros, tolerance)


def test_the_message_names_the_worst_row_and_its_figures_with_their_limits() -> None:
    expected = unit_rows()
    actual = expected.copy()
    actual[2] = turned(expected, 0.999)[2]
    actual[5] = turned(expected, 0.9)[5]
    with pytest.raises(AssertionError) as failure:
        compare(actual, expected, BF16)
    message = str(failure.value)
    assert message.startswith("row 5 is outside bf16: cosine 0.9000000 (>= 0.9995), max-abs 0.")
    assert message.endswith("(<= 0.001); 2 of 6 rows break a limit")


def test_other_shapes_fail() -> None:
    with pytest.raises(AssertionError, match="shapes differ"):
        compare(unit_rows(6), unit_rows(5), F32)
    with pytest.raises(AssertionError, match="shapes differ"):
        compare(unit_rows()[0], unit_rows()[0], F32)


def test_nothing_to_compare_fails() -> None:
    with pytest.raises(AssertionError, match="no rows"):
        compare(np.zeros((0, 32), np.float32), np.zeros((0, 32), np.float32), F32)


LOGITS = pytest.mark.parametrize("max_abs", [LOGITS_F32, LOGITS_BF16])


@LOGITS
@pytest.mark.parametrize("width", [1, 5])
def test_logits_may_be_off_by_the_limit_and_no_further(max_abs: float, width: int) -> None:
    expected = np.random.default_rng(7).standard_normal((6, width)).astype(np.float32)
    actual = expected.copy()
    actual[4, -1] += np.float32(0.9 * max_abs)
    assert compare_logits(actual, expected, max_abs) == pytest.approx(0.9 * max_abs, rel=0.01)
    actual[2, 0] -= np.float32(1.2 * max_abs)
    with pytest.raises(AssertionError, match=r"row 2 is off by .* 1 of 6 rows break the limit"):
        compare_logits(actual, expected, max_abs)


@LOGITS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_fail(max_abs: float, value: float) -> None:
    expected = np.ones((3, 2), np.float32)
    actual = expected.copy()
    actual[1, 1] = value
    with pytest.raises(AssertionError, match="row 1 "):
        compare_logits(actual, expected, max_abs)


def test_logits_of_other_shapes_or_none_fail() -> None:
    with pytest.raises(AssertionError, match="shapes differ"):
        compare_logits(np.zeros((3, 1), np.float32), np.zeros((3, 2), np.float32), LOGITS_F32)
    with pytest.raises(AssertionError, match="no logits"):
        compare_logits(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), LOGITS_F32)
