"""How near a quantised engine comes to f32, and the bar under which it is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bei_core.config.settings import Settings
from bei_core.errors import QualityError
from bei_core.models.spec import Kind

Array = npt.NDArray[Any]

# What counts of each kind of model: directions of vectors, or labels and the order of texts by their scores.
_COUNTS: dict[Kind, tuple[str, ...]] = {
    "embedding": ("mean_cosine",),
    "sparse": ("mean_cosine",),
    "late-interaction": ("mean_cosine",),
    "classifier": ("top_label_agreement", "rank_correlation"),
    "token-classifier": ("top_label_agreement", "rank_correlation"),
    "reranker": ("rank_correlation",),
}


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """The least that is served; each is a setting of the same name with `quality_` before it."""

    mean_cosine: float = 0.99
    top_label_agreement: float = 0.97
    rank_correlation: float = 0.98


def bar_of(settings: Settings) -> Bar:
    """The bar that the settings set."""
    return Bar(**{name: getattr(settings, f"quality_{name}") for name in Bar.__struct_fields__})


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on held-out inputs. `num_rows` is inputs, or tokens of a model that gives rows of tokens."""

    kind: Kind
    num_rows: int
    mean_cosine: float  # of each row with its reference
    min_cosine: float
    max_abs: float  # largest difference of two elements
    norm_ratio: float  # mean of a row's norm over its reference's
    top_label_agreement: float | None = None  # share of rows whose largest logit is the same label's
    rank_correlation: float | None = None  # Spearman's, of each label's logits over the rows, mean of the labels
    bar: Bar | None = None  # what it was held against

    def check(self, bar: Bar) -> Quality:
        """Itself with the bar noted. Raises QualityError with the figures where one that counts is below."""
        below = [name for name in _COUNTS[self.kind] if not (getattr(self, name) or 0.0) >= getattr(bar, name)]
        if below:  # so too where it is NaN
            wanted = ", ".join(f"{name.replace('_', ' ')} at least {getattr(bar, name):g}" for name in below)
            lower = ", ".join(f"quality_{name}" for name in below)
            raise QualityError(
                f"the quantised engine is too far from f32: {self}; wanted is {wanted}. Try another "
                f"smooth_quant_alpha, more texts (calib_size), texts like those to be served (calib_dataset), "
                f"quantization_type fp8_mlp_only, a lower bar ({lower}), or quantization_type no_quant"
            )
        return msgspec.structs.replace(self, bar=bar)

    def __str__(self) -> str:
        """The figures in one line."""
        parts = [f"mean cosine {self.mean_cosine:.4f} (least {self.min_cosine:.4f})"]
        if self.top_label_agreement is not None:
            parts.append(f"top label agrees in {self.top_label_agreement:.1%}")
        if self.rank_correlation is not None:
            parts.append(f"rank correlation {self.rank_correlation:.4f}")
        return f"{', '.join(parts)}, norm ratio {self.norm_ratio:.3f}, on {self.num_rows} held-out rows"


def measure(reference: Array, candidate: Array, kind: Kind) -> Quality:
    """The figures of f32[N, D] against their reference. Raises ValueError where the shapes differ."""
    if reference.shape != candidate.shape or not reference.size:
        raise ValueError(f"this is a bug: {candidate.shape} rows cannot be held against {reference.shape}")
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    norms, own = np.linalg.norm(reference, axis=1), np.linalg.norm(candidate, axis=1)
    cosines = _cosines(reference, candidate)
    scored = "rank_correlation" in _COUNTS[kind]
    labelled = "top_label_agreement" in _COUNTS[kind]
    return Quality(
        kind=kind,
        num_rows=len(reference),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        max_abs=float(np.abs(reference - candidate).max()),
        norm_ratio=float(_share(own, norms).mean()),
        top_label_agreement=float((reference.argmax(1) == candidate.argmax(1)).mean()) if labelled else None,
        rank_correlation=_rank_correlation(reference, candidate) if scored else None,
    )


def _cosines(reference: Array, candidate: Array) -> Array:
    """The cosine of each two rows; of a row of zeros 1 with another such, and 0 with any other."""
    norms, own = np.linalg.norm(reference, axis=1), np.linalg.norm(candidate, axis=1)
    product = norms * own
    inner = np.einsum("nd,nd->n", reference, candidate)
    cosines: Array = np.where(product == 0, norms == own, inner / np.where(product == 0, 1, product))
    return cosines


def _share(part: Array, whole: Array) -> Array:
    """Part / whole of each; 1 of 0 / 0, and 0 of anything else over 0."""
    nothing = whole == 0
    shares: Array = np.where(nothing, part == 0, part / np.where(nothing, 1, whole))
    return shares


def _rank_correlation(reference: Array, candidate: Array) -> float:
    """Spearman's rho of each column, equal values sharing their mean rank; the mean of the columns."""
    if not np.isfinite(candidate).all():
        return float("nan")
    pairs = zip(reference.T, candidate.T, strict=True)
    return float(np.mean([_pearson(_ranks(one), _ranks(other)) for one, other in pairs]))


def _pearson(x: Array, y: Array) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(_share(np.array(x @ y), np.sqrt((x @ x) * (y @ y))))


def _ranks(values: Array) -> Array:
    """Ranks from 0; equal values have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Array = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return means
