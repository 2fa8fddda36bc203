"""`Kind`, what a model does."""

from __future__ import annotations

from enum import Enum


class Kind(str, Enum):
    """What a model does. The value is its name in `/info`, in errors and in engine folders."""

    tei_type: str  # the name of such a model in the `model_type` of TEI's `/info`

    EMBEDDING = "embedding", "embedding"  # one vector per text
    CLASSIFIER = "classifier", "classifier"  # a score for each of several labels
    RERANKER = "reranker", "reranker"  # one score, of a query and a document
    TOKEN_CLASSIFIER = "token-classifier", "classifier"  # a score of every token for each label
    SPARSE = "sparse", "embedding"  # one weight for each term of the vocabulary
    LATE_INTERACTION = "late-interaction", "embedding"  # one vector per token

    def __new__(cls, value: str, tei_type: str = "") -> Kind:
        """Returns a kind with its attributes."""
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.tei_type = tei_type
        return kind

    def __str__(self) -> str:
        return str(self.value)
