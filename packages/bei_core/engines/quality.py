"""The quality of a quantised engine: how close its rows are to f32, and the thresholds below which it is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bei_core.config.settings import Settings
from bei_core.engines.quality_report import REPORT, write_report
from bei_core.errors import QualityError
from bei_core.models.kind import Kind
from bei_core.tasks import Text

log = logging.getLogger(__name__)

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


def min_texts(kind: Kind) -> int:
    """The fewest texts on which the quality of a large model is measured, and with which it is calibrated.

    A share of equal labels and a correlation of ranks are less certain than a mean of cosines.
    """
    return 32 if _CHECKED[kind] == ("mean_cosine",) else 128


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
                f"the quantised engine is too far from f32: {self}; required is {required}. For fp8, try another "
                f"smooth_quant_alpha, more texts (calib_size), texts like those to be served (calib_dataset), or "
                f"quantization_type fp8_mlp_only. Else try int8_weight_only (CPU only), a lower threshold ({lower}), "
                "or quantization_type no_quant"
            )
        return msgspec.structs.replace(self, bar=bar)

    def figures(self) -> dict[str, float]:
        """The figures that this kind of model has, by name."""
        names = ("mean_cosine", "min_cosine", "max_abs", "norm_ratio", "top_label_agreement", "rank_correlation")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def __str__(self) -> str:
        """The figures in one line."""
        parts = [f"mean cosine {self.mean_cosine:.4f} (minimum {self.min_cosine:.4f})"]
        if self.top_label_agreement is not None:
            parts.append(f"top label agrees in {self.top_label_agreement:.1%}")
        if self.rank_correlation is not None:
            parts.append(f"rank correlation {self.rank_correlation:.4f}")
        return f"{', '.join(parts)}, norm ratio {self.norm_ratio:.3f}, on {self.num_rows} held-out rows"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of a quantised engine and those of f32, of the same held-out inputs."""

    texts: Sequence[Text]
    reference: Array  # f32[num_rows, D]
    candidate: Array
    num_rows: Sequence[int] | None = None  # of each text; None: one

    def by_text(self) -> Array:
        """The smallest cosine of the rows of each text, in the texts' order."""
        cosines = cosines_of(self.reference, self.candidate)
        if self.num_rows is None:
            return cosines
        lowest: Array = np.minimum.reduceat(cosines, np.cumsum([0, *self.num_rows[:-1]]))
        return lowest

    def check(self, kind: Kind, bar: Bar, folder: Path, title: str) -> Quality:
        """The quality of an engine that is built in `folder`, which gets a report. Raises QualityError."""
        quality = measure(self.reference, self.candidate, kind)
        figures = [
            (
                name.replace("_", " "),
                f"{value:.4f}",
                f"at least {getattr(bar, name):g}" if name in _CHECKED[kind] else "",
            )
            for name, value in quality.figures().items()
        ]
        by_text = list(zip(self.by_text().tolist(), self.texts, strict=True))
        write_report(folder / REPORT, title, figures, cosines_of(self.reference, self.candidate), by_text)
        checked = quality.check(bar)
        log.info("quality of %s compared with f32: %s", title, checked)
        return checked


def measure(reference: Array, candidate: Array, kind: Kind) -> Quality:
    """The quality of rows f32[num_rows, D] against a reference of that shape. Raises ValueError for other shapes."""
    if reference.shape != candidate.shape or not reference.size:
        raise ValueError(f"this is a bug: rows of shape {candidate.shape} cannot be compared with {reference.shape}")
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    norms, candidate_norms = np.linalg.norm(reference, axis=1), np.linalg.norm(candidate, axis=1)
    cosines = cosines_of(reference, candidate)
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
        rank_correlation=rank_correlation(reference, candidate) if has_scores else None,
    )


def cosines_of(reference: Array, candidate: Array) -> Array:
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


def rank_correlation(reference: Array, candidate: Array) -> float:
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
