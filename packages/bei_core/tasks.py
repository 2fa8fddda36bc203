"""What a caller can ask for, and what is computed from the model's rows once they are there. NumPy only.

A task says what to encode and, in `finish`, what becomes of the rows; nothing of it reaches the engine, so everything
that waits for the same model can share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from bei_core.errors import ValidationError

ResultT = TypeVar("ResultT", covariant=True)


class Pair(NamedTuple):
    """Two texts that the model reads together: a query and a document."""

    first: str
    second: str


class Templated(NamedTuple):
    """A whole prompt, of which the document, at text[start:stop], is what may be cut."""

    text: str
    start: int
    stop: int


# A text, two, a whole prompt, or token ids that are used as they are.
Text: TypeAlias = str | Pair | Templated | Sequence[int]
Rows: TypeAlias = npt.NDArray[np.float32]  # [N, D], row i for input i
TokenRows: TypeAlias = npt.NDArray[np.float32]  # [n, E], one row a token of one input

# What a task needs of each input: its one row, the rows of its tokens, or the nonzero elements of its row.
Output: TypeAlias = Literal["rows", "tokens", "sparse"]

# What makes scores of logits: one label, or several that do not exclude each other, by sigmoid; those that do by
# softmax; a regression's are left as they are.
Scoring: TypeAlias = Literal["sigmoid", "softmax", "none"]


class TruncationSide(str, Enum):
    """The end at which a text that is too long loses tokens."""

    RIGHT = "right"
    LEFT = "left"


def num_characters(text: Text) -> int:
    """Characters of a text, or of both texts of a pair; none of token ids."""
    if isinstance(text, Pair):
        return len(text.first) + len(text.second)
    if isinstance(text, Templated):
        return len(text.text)
    return len(text) if isinstance(text, str) else 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the texts of one request become tokens."""

    truncate: bool = True
    side: TruncationSide | None = None  # of a text that is cut, what goes; None: as the model was published
    prompt: str | None = None  # goes before every text
    pool_prompt: bool = True  # whether the prompt's tokens count in pooling
    chunk: bool = False  # a text that is too long is split rather than cut
    chunk_tokens: int | None = None  # at most so many of a text's own, or of a document's; None: all that fit


@dataclass(frozen=True, slots=True)
class Tokens:
    """One encoded input, at least one token long and short enough for the model."""

    ids: npt.NDArray[np.int32]  # [n]
    type_ids: npt.NDArray[np.int32]  # [n]
    skip: int = 0  # first tokens that pooling leaves out

    def __len__(self) -> int:
        return len(self.ids)


class Sparse(NamedTuple):
    """The elements of a row that are not zero."""

    indices: npt.NDArray[np.int64]  # ascending
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, row: Rows) -> Sparse:
        """The nonzero elements of f32[V]."""
        indices = np.flatnonzero(row)
        return cls(indices, row[indices])


class Task(Protocol[ResultT]):
    """One request's work: inputs in, what the model makes of them to a result."""

    output: ClassVar[Output]

    @property
    def inputs(self) -> Sequence[Text]:
        """What to encode."""
        ...

    @property
    def encoding(self) -> Encoding:
        """How to encode it."""
        ...

    def join(self, rows: Any, owners: npt.NDArray[np.intp], weights: Rows) -> Any:  # noqa: ANN401
        """One output an input where inputs were split: `rows` and `weights` (tokens) of the chunks, input of each."""
        ...

    def finish(self, rows: Any) -> ResultT:  # noqa: ANN401
        """The caller's answer from the outputs of `inputs`, in their order."""
        ...


class _Whole:
    """Of tasks whose inputs are never split."""

    __slots__ = ()

    def join(self, rows: Any, owners: npt.NDArray[np.intp], weights: Rows) -> Any:  # noqa: ANN401
        """Raises ValidationError: there is no one output of several chunks."""
        raise ValidationError("`chunk` is for dense embeddings and for scores", param="chunk")


@dataclass(frozen=True, slots=True)
class Embed:
    """Dense vectors, one a text."""

    output: ClassVar[Output] = "rows"

    inputs: Sequence[Text]
    encoding: Encoding = field(default_factory=Encoding)
    normalize: bool = True
    dimensions: int | None = None  # Matryoshka (Kusupati et al. 2022): keep the first so many

    def join(self, rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
        """f32[N, D]: the mean of each text's chunks, weighted by their tokens; of directions where those count."""
        return weighted_mean(l2_normalize(rows) if self.normalize else rows, owners, weights)

    def finish(self, rows: Rows) -> Rows:
        """f32[N, dimensions or D]: cut, then L2-normalised if asked.

        Raises ValidationError for impossible dimensions.
        """
        if self.dimensions is not None:
            check_dimensions(self.dimensions, rows.shape[1])
            rows = rows[:, : self.dimensions]
        return l2_normalize(rows) if self.normalize else rows


@dataclass(frozen=True, slots=True)
class EmbedAll(_Whole):
    """A vector for every token of each text: a late-interaction model's, or those that pooling is given."""

    output: ClassVar[Output] = "tokens"
    inputs: Sequence[Text]
    encoding: Encoding = field(default_factory=Encoding)

    def finish(self, rows: Sequence[TokenRows]) -> Sequence[TokenRows]:
        """f32[n, E] a text."""
        return rows


@dataclass(frozen=True, slots=True)
class EmbedSparse(_Whole):
    """Weights of the vocabulary's terms, most of them zero (Formal et al. 2021, SPLADE)."""

    output: ClassVar[Output] = "sparse"
    inputs: Sequence[Text]
    encoding: Encoding = field(default_factory=Encoding)

    def finish(self, rows: Sequence[Sparse]) -> Sequence[Sparse]:
        """The nonzero weights of each text."""
        return rows


@dataclass(frozen=True, slots=True)
class ClassifyTokens(_Whole):
    """Scores of every token of each text for each label."""

    output: ClassVar[Output] = "tokens"
    inputs: Sequence[Text]
    encoding: Encoding
    scoring: Scoring

    def finish(self, rows: Sequence[TokenRows]) -> Sequence[TokenRows]:
        """f32[n, C] a text, in the order of the labels."""
        return [scores(logits, self.scoring) for logits in rows]


@dataclass(frozen=True, slots=True)
class Classify:
    """Scores for each of the model's labels; of a reranker's one label, the relevance of each pair."""

    output: ClassVar[Output] = "rows"
    inputs: Sequence[Text]
    encoding: Encoding
    scoring: Scoring

    def join(self, rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
        """f32[N, C]: of one label the best chunk's, of several the mean of the chunks, weighted by their tokens."""
        if rows.shape[1] > 1:
            return weighted_mean(rows, owners, weights)
        return np.maximum.reduceat(rows, _firsts(owners))

    def finish(self, rows: Rows) -> Rows:
        """f32[N, C], in the order of the labels."""
        return scores(rows, self.scoring)


@dataclass(frozen=True, slots=True)
class Rank(Classify):
    """Relevance of each pair: of two labels, no and yes, the margin between them is the one that counts."""

    def join(self, rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
        """f32[N, 1]: the best chunk's."""
        return Classify.join(self, _margin(rows), owners, weights)

    def finish(self, rows: Rows) -> Rows:
        """f32[N, 1]."""
        return scores(_margin(rows), self.scoring)


def _margin(rows: Rows) -> Rows:
    """f32[N, 1] of logits of one label, or of no and yes."""
    return rows if rows.shape[1] == 1 else rows[:, 1:] - rows[:, :1]


def weighted_mean(rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
    """f32[N, D]: the mean of the rows of each owner (0, 0, 1, 2 ...), weighted by f32[len(rows)]."""
    firsts = _firsts(owners)
    means: Rows = np.add.reduceat(rows * weights[:, None], firsts)
    means /= np.add.reduceat(weights, firsts)[:, None]
    return means


def _firsts(owners: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Where each owner's chunks begin."""
    return np.flatnonzero(np.diff(owners, prepend=-1))


def scores(logits: Rows, scoring: Scoring) -> Rows:
    """Probabilities of logits f32[N, C], or the logits themselves."""
    if scoring == "none":
        return logits
    if scoring == "sigmoid":
        small = np.exp(-np.abs(logits))  # of the side that does not overflow
        sigmoid: Rows = np.where(logits >= 0, 1, small) / (1 + small)
        return sigmoid
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax: Rows = exps / exps.sum(axis=1, keepdims=True)
    return softmax


def best_first(values: Rows, top_n: int | None = None) -> list[int]:
    """Indices of f32[N], the largest value first, equal ones in their order; at most `top_n`."""
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order[:top_n]


def check_dimensions(dimensions: int, width: int) -> None:
    """Raises ValidationError unless `dimensions` is in 1..`width`, the model's own."""
    if not 1 <= dimensions <= width:
        raise ValidationError(f"`dimensions` must be between 1 and {width}, got {dimensions}", param="dimensions")


def l2_normalize(rows: Rows) -> Rows:
    """Rows of length 1; the floor of 1e-12 is torch's (`functional.normalize`), so a row of zeros stays one."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    unit: Rows = rows / np.maximum(norms, np.float32(1e-12))[:, None]
    return unit
