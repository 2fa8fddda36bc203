"""How far an engine's rows may be from the expected ones, by the precision it computes in, and the check itself."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]  # [N, D]
Column = npt.NDArray[np.float64]  # [N]


@dataclass(frozen=True)
class Tolerance:
    """Limits that every row has to keep, all of them, and the mean of all rows.

    A cosine alone misses a wrong scale, a norm alone a wrong direction, and both one wrong element of a long vector.
    """

    name: str
    min_cosine: float
    max_abs: float
    max_norm_error: float  # of rows whose expected norm is 1
    max_scale_error: float  # of all others, relative to their expected norm
    min_mean_cosine: float = -1.0


@dataclass(frozen=True)
class Figures:
    """What was measured, for a row or as the worst of each over all rows."""

    cosine: float
    max_abs: float
    norm_error: float


F32 = Tolerance("f32", min_cosine=0.99999, max_abs=1e-4, max_norm_error=1e-4, max_scale_error=1e-4)
# A normalised row has norm 1 in any precision if the last division is done in f32. Without one, the error of the layers
# before stays: torch's own bf16 is off by up to 5e-3 on the golden checkpoints.
BF16 = Tolerance("bf16", min_cosine=0.9995, max_abs=math.inf, max_norm_error=1e-3, max_scale_error=1e-2)
# Random decoders with large weights. Single rows are ill-conditioned: with 16 seeds of each of four checkpoints,
# torch's own bf16 has least cosines of 0.9966 to 0.9998 and means of 0.9997 to 0.9999. So the mean tells more.
BF16_WIDE = dataclasses.replace(
    BF16, name="bf16, wide", min_cosine=0.996, min_mean_cosine=0.9997, max_norm_error=2e-3, max_scale_error=2e-2
)
# Of logits, which have no length that would mean anything. torch's own bf16 is off by up to 0.07 on the golden
# checkpoints, whose logits have deviations of 0.3 to 2.
LOGITS_F32 = 2e-4
LOGITS_BF16 = 0.1
UNIT = 1e-5  # how far from 1 the norm of a normalised row may be


def compare(actual: Rows, expected: Rows, tolerance: Tolerance) -> Figures:
    """The worst of each figure over the rows. Raises AssertionError naming the worst row if any row breaks a limit."""
    if actual.shape != expected.shape or actual.ndim != 2:
        raise AssertionError(f"shapes differ or are not [N, D]: actual {actual.shape}, expected {expected.shape}")
    if not len(expected):
        raise AssertionError("nothing was compared: there are no rows")
    norm_limit = _norm_limits(expected, tolerance)
    with np.errstate(all="ignore"):  # what is not finite is counted as the worst instead
        cosine, max_abs, norm_error = _columns(actual.astype(np.float64), expected.astype(np.float64))
        # Each figure as a multiple of its limit, so that rows which break different limits can be ranked.
        excess = np.maximum((1 - cosine) / (1 - tolerance.min_cosine), max_abs / tolerance.max_abs)
        excess = np.nan_to_num(np.maximum(excess, norm_error / norm_limit), nan=math.inf, posinf=math.inf)
    if (broken := int((excess > 1).sum())) > 0:
        row = int(excess.argmax())
        raise AssertionError(
            f"row {row} is outside {tolerance.name}: cosine {cosine[row]:.7f} (>= {tolerance.min_cosine}), "
            f"max-abs {max_abs[row]:.3g} (<= {tolerance.max_abs:g}), norm error {norm_error[row]:.3g} "
            f"(<= {norm_limit[row]:g}); {broken} of {len(expected)} rows break a limit"
        )
    if cosine.mean() < tolerance.min_mean_cosine:
        raise AssertionError(
            f"the mean cosine {cosine.mean():.7f} is outside {tolerance.name} (>= {tolerance.min_mean_cosine})"
        )
    return Figures(float(cosine.min()), float(max_abs.max()), float(norm_error.max()))


def compare_logits(actual: Rows, expected: Rows, max_abs: float) -> float:
    """The largest difference of a logit. Raises AssertionError naming the worst row if one is above `max_abs`."""
    if actual.shape != expected.shape or actual.ndim != 2:
        raise AssertionError(f"shapes differ or are not [N, L]: actual {actual.shape}, expected {expected.shape}")
    if not expected.size:
        raise AssertionError("nothing was compared: there are no logits")
    with np.errstate(invalid="ignore"):
        errors = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(axis=1)
    errors = np.where(np.isfinite(errors), errors, math.inf)
    if (broken := int((errors > max_abs).sum())) > 0:
        row = int(errors.argmax())
        raise AssertionError(
            f"row {row} is off by {errors[row]:.3g} (<= {max_abs:g}): {actual[row].tolist()}, expected "
            f"{expected[row].tolist()}; {broken} of {len(expected)} rows break the limit"
        )
    return float(errors.max())


def check_order(actual: Rows, expected: Rows, margin: float) -> int:
    """Pairs of texts that were compared: which of two is nearer to a third, where the expected cosines are further
    apart than `margin`. Raises AssertionError if any comes out the other way round.
    """
    found, wanted = (_cosines(rows.astype(np.float64)) for rows in (actual, expected))
    gaps = wanted[:, :, None] - wanted[:, None, :]
    clear = gaps > margin
    turned = clear & (found[:, :, None] <= found[:, None, :])
    if turned.any():
        raise AssertionError(f"{int(turned.sum())} of {int(clear.sum())} orders are the other way round")
    return int(clear.sum())


def _cosines(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarities: npt.NDArray[np.float64] = unit @ unit.T
    return similarities


def _columns(actual: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> tuple[Column, Column, Column]:
    """Cosine, largest element difference and relative norm error of each row."""
    norms, wanted = np.linalg.norm(actual, axis=1), np.linalg.norm(expected, axis=1)
    cosine = np.einsum("nd,nd->n", actual, expected) / (norms * wanted)
    norm_error = np.abs(norms - wanted) / wanted
    are_zeros = (norms == 0) & (wanted == 0)  # which are equal, not undefined
    return np.where(are_zeros, 1, cosine), np.abs(actual - expected).max(axis=1), np.where(are_zeros, 0, norm_error)


def _norm_limits(expected: Rows, tolerance: Tolerance) -> Column:
    """The limit on the relative norm error of each row."""
    is_unit = np.abs(np.linalg.norm(expected.astype(np.float64), axis=1) - 1) <= UNIT
    return np.where(is_unit, tolerance.max_norm_error, tolerance.max_scale_error)
