"""The quality of a quantised engine: how close its rows are to f32, and the thresholds below which it is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bei_core.config.settings import Settings
from bei_core.errors import QualityError
from bei_core.models.kind import Kind

Array = npt.NDArray[Any]

# The figures that are compared with thresholds, by kind of model: the vectors' directions, or labels and ranking.
_CHECKED: dict[Kind, tuple[str, ...]] = {
    Kind.EMBEDDING: ("mean_cosine",),
    Kind.SPARSE: ("mean_cosine",),
    Kind.LATE_INTERACTION: ("mean_cosine",),
    Kind.CLASSIFIER: ("top_label_agreement", "rank_correlation"),
    Kind.TOKEN_CLASSIFIER: ("top_label_agreement", "rank_correlation"),
    Kind.RERANKER: ("rank_correlation",),
}


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds of quality. The setting for each is its name with the prefix `quality_`."""

    mean_cosine: float = 0.99
    top_label_agreement: float = 0.97
    rank_correlation: float = 0.98


def bar_of(settings: Settings) -> Bar:
    """The thresholds in the settings."""
    return Bar(**{name: getattr(settings, f"quality_{name}") for name in Bar.__struct_fields__})


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """The quality measured on held-out inputs, from the rows of a quantised engine and their f32 references."""

    kind: Kind
    num_rows: int  # number of inputs, or of tokens for a model that gives rows of tokens
    mean_cosine: float  # of each row and its reference
    min_cosine: float
    max_abs: float  # largest absolute difference of two elements
    norm_ratio: float  # mean of a row's norm divided by its reference's
    top_label_agreement: float | None = None  # share of rows whose largest logit is for the same label
    rank_correlation: float | None = None  # Spearman's, of each label's logits over the rows; mean over labels
    bar: Bar | None = None  # the thresholds of `check`

    def check(self, bar: Bar) -> Quality:
        """A copy that includes the thresholds. Raises QualityError if a figure is below its threshold or NaN."""
        below = [name for name in _CHECKED[self.kind] if not (getattr(self, name) or 0.0) >= getattr(bar, name)]
        if below:
            required = ", ".join(f"{name.replace('_', ' ')} at least {getattr(bar, name):g}" for name in below)
            lower = ", ".join(f"quality_{name}" for name in below)
            raise QualityError(
                f"the quantised engine is too far from f32: {self}; required is {required}. Try another "
                f"smooth_quant_alpha, more texts (calib_size), texts like those to be served (calib_dataset), "
                f"quantization_type fp8_mlp_only, a lower threshold ({lower}), or quantization_type no_quant"
            )
        return msgspec.structs.replace(self, bar=bar)

    def __str__(self) -> str:
        """The figures in one line."""
        parts = [f"mean cosine {self.mean_cosine:.4f} (minimum {self.min_cosine:.4f})"]
        if self.top_label_agreement is not None:
            parts.append(f"top label agrees in {self.top_label_agreement:.1%}")
        if self.rank_correlation is not None:
            parts.append(f"rank correlation {self.rank_correlation:.4f}")
        return f"{', '.join(parts)}, norm ratio {self.norm_ratio:.3f}, on {self.num_rows} held-out rows"


def measure(reference: Array, candidate: Array, kind: Kind) -> Quality:
    """The quality of rows f32[num_rows, D] against a reference of that shape. Raises ValueError for other shapes."""
    if reference.shape != candidate.shape or not reference.size:
        raise ValueError(f"this is a bug: rows of shape {candidate.shape} cannot be compared with {reference.shape}")
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    norms, candidate_norms = np.linalg.norm(reference, axis=1), np.linalg.norm(candidate, axis=1)
    cosines = _cosines(reference, candidate)
    has_scores = "rank_correlation" in _CHECKED[kind]
    has_labels = "top_label_agreement" in _CHECKED[kind]
    return Quality(
        kind=kind,
        num_rows=len(reference),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        max_abs=float(np.abs(reference - candidate).max()),
        norm_ratio=float(_ratio(candidate_norms, norms).mean()),
        top_label_agreement=float((reference.argmax(1) == candidate.argmax(1)).mean()) if has_labels else None,
        rank_correlation=_rank_correlation(reference, candidate) if has_scores else None,
    )


def _cosines(reference: Array, candidate: Array) -> Array:
    """Cosine of each pair of rows; 1 if both rows are zero, 0 if one of them is."""
    norms, candidate_norms = np.linalg.norm(reference, axis=1), np.linalg.norm(candidate, axis=1)
    product = norms * candidate_norms
    inner = np.einsum("nd,nd->n", reference, candidate)
    cosines: Array = np.where(product == 0, norms == candidate_norms, inner / np.where(product == 0, 1, product))
    return cosines


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Numerator / denominator, elementwise; 0 / 0 is 1, and anything else over 0 is 0."""
    is_zero = denominator == 0
    ratios: Array = np.where(is_zero, numerator == 0, numerator / np.where(is_zero, 1, denominator))
    return ratios


def _rank_correlation(reference: Array, candidate: Array) -> float:
    """Mean over columns of Spearman's rho, with mean ranks for equal values; NaN if a value is not finite."""
    if not np.isfinite(candidate).all():
        return float("nan")
    pairs = zip(reference.T, candidate.T, strict=True)
    return float(np.mean([_pearson(_ranks(one), _ranks(other)) for one, other in pairs]))


def _pearson(x: Array, y: Array) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(_ratio(np.array(x @ y), np.sqrt((x @ x) * (y @ y))))


def _ranks(values: Array) -> Array:
    """The rank of each value, from 0; equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Array = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return means
