"""Whether a peer computes what we compute: cosines of vectors, rank correlation of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Answers = Sequence[Sequence[float]]  # a vector for each text; or one row of scores, in the order of the documents

MIN_COSINE = {"f32": 0.9999, "bf16": 0.999, "f16": 0.999, "int8": 0.95}
MIN_RANK_CORRELATION = {"f32": 0.999, "bf16": 0.97, "f16": 0.97, "int8": 0.9}
NUM_TEXTS = 16  # that are compared


def agreement(ours: Answers, theirs: Answers, rerank: bool) -> float:
    """The least cosine over the texts, or the rank correlation of the scores; 0 if the shapes differ."""
    left, right = (np.asarray(answers, np.float64) for answers in (ours, theirs))
    if left.shape != right.shape:
        return 0.0
    return _rank_correlation(left[0], right[0]) if rerank else _least_cosine(left, right)


def _least_cosine(left: np.ndarray, right: np.ndarray) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.min(np.sum(left * right, axis=1) / norms))


def _rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's, of scores without ties. Ranks are the same for logits and their sigmoid."""
    ranks = np.array([np.argsort(np.argsort(scores)) for scores in (left, right)])
    return float(np.corrcoef(ranks)[0, 1])


def why_no_peer(precision: str, found: float, rerank: bool) -> str:
    """Why the figures would not be comparable; empty if they are."""
    limit = (MIN_RANK_CORRELATION if rerank else MIN_COSINE)[precision]
    what = "rank correlation" if rerank else "least cosine"
    return "" if found >= limit else f"its {what} to our f32 is {found:.4f}, below {limit}"
