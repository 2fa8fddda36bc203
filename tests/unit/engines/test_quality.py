"""The figures of quality, compared with values by hand and by scipy's formulas, and the refusals."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from bei_core.engines.quality import Bar, Quality, measure
from bei_core.errors import QualityError
from bei_core.models.kind import Kind

RNG = np.random.default_rng(0)


def test_rows_are_at_cosine_1_from_themselves_and_from_their_multiples() -> None:
    rows = RNG.standard_normal((20, 8)).astype(np.float32)
    quality = measure(rows, 2 * rows, Kind.EMBEDDING)
    assert (quality.mean_cosine, quality.min_cosine) == pytest.approx((1, 1))
    assert quality.norm_ratio == pytest.approx(2)
    assert quality.max_abs == pytest.approx(np.abs(rows).max())
    assert quality.top_label_agreement is quality.rank_correlation is None


def test_cosines_by_hand() -> None:
    reference = np.array([[1, 0], [0, 2], [0, 0], [0, 0]], np.float32)
    candidate = np.array([[1, 1], [0, 1], [0, 0], [1, 0]], np.float32)
    quality = measure(reference, candidate, Kind.SPARSE)
    assert quality.mean_cosine == pytest.approx((0.5**0.5 + 1 + 1 + 0) / 4)
    assert quality.min_cosine == 0


def test_labels_agree_and_scores_rank() -> None:
    reference = np.array([[1, 2], [4, 3], [5, 6], [8, 7]], np.float32)
    swapped = reference[:, ::-1]
    same = measure(reference, reference**3, Kind.CLASSIFIER)
    assert same.top_label_agreement == 1
    assert same.rank_correlation == pytest.approx(1)
    assert measure(reference, swapped, Kind.CLASSIFIER).top_label_agreement == 0
    assert measure(reference, -reference, Kind.TOKEN_CLASSIFIER).rank_correlation == pytest.approx(-1)


def test_equal_scores_share_their_rank() -> None:
    reference = np.array([[1], [2], [2], [3]], np.float32)
    candidate = np.array([[1], [2], [3], [4]], np.float32)
    # Pearson of ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert measure(reference, candidate, Kind.RERANKER).rank_correlation == pytest.approx((4.5 / 5) ** 0.5)


@pytest.mark.parametrize(
    ("kind", "figure"),
    [("embedding", "mean_cosine"), ("classifier", "top_label_agreement"), ("reranker", "rank_correlation")],
)
def test_each_kind_of_model_is_checked_against_its_own_thresholds(kind: str, figure: str) -> None:
    passing = Quality(
        kind=kind,  # type: ignore[arg-type]
        num_rows=9,
        mean_cosine=0.995,
        min_cosine=0.5,
        max_abs=1,
        norm_ratio=1,
        top_label_agreement=0.99,
        rank_correlation=0.99,
    )
    assert passing.check(Bar()).bar == Bar()
    with pytest.raises(QualityError, match=f"quality_{figure}") as raised:
        msgspec.structs.replace(passing, **{figure: 0.9}).check(Bar())
    assert all(way in str(raised.value) for way in ("smooth_quant_alpha", "calib_size", "no_quant", "0.9"))
    assert msgspec.structs.replace(passing, **{figure: 0.9}).check(Bar(**{figure: 0.9}))


@pytest.mark.parametrize("kind", ["embedding", "reranker", "classifier", "sparse"])
def test_nan_is_refused(kind: str) -> None:
    rows = RNG.standard_normal((20, 3)).astype(np.float32)
    broken = rows.copy()
    broken[3, 1] = np.nan
    with pytest.raises(QualityError):
        measure(rows, broken, kind).check(Bar(top_label_agreement=0))  # type: ignore[arg-type]


def test_rows_of_another_shape_are_a_bug() -> None:
    with pytest.raises(ValueError, match="this is a bug"):
        measure(np.ones((2, 3)), np.ones((2, 4)), Kind.EMBEDDING)


def test_quality_is_stored_in_a_manifest_and_shown_in_one_line() -> None:
    quality = measure(np.eye(3), np.eye(3), Kind.CLASSIFIER).check(Bar())
    assert msgspec.json.decode(msgspec.json.encode(quality), type=Quality) == quality
    assert str(quality).startswith("mean cosine 1.0000 (minimum 1.0000), top label agrees in 100.0%")
