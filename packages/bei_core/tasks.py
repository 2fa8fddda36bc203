"""Tasks: what a client can ask of a model, and the computation of the result from the model's rows (NumPy only).

A task has inputs and the options to tokenize them; `finish` computes its result from the model's rows. The engine never
sees a task, so requests with different options can share a batch.
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
    """A prompt that contains a document at text[start:stop]; only the document may be truncated or chunked."""

    text: str
    start: int
    stop: int
    add_special_tokens: bool = True  # False: the text has those that it needs


# One input: a text, a pair, a prompt with a document, or token ids that are used unchanged.
Text: TypeAlias = str | Pair | Templated | Sequence[int]
Rows: TypeAlias = npt.NDArray[np.float32]  # [N, D], row i for input i
TokenRows: TypeAlias = npt.NDArray[np.float32]  # [n, E], one row per token of one input

# What a task needs for each input: "rows" is the row of the input, "tokens" are the rows of its tokens, "sparse" is the
# weights of its terms (the nonzero elements of its row, or for bge-m3 the largest weight of each token id), and
# "weights" is the weights of its tokens. A tuple names several outputs, which are computed in one pass.
Output: TypeAlias = Literal["rows", "tokens", "sparse", "weights"]
Outputs: TypeAlias = Output | tuple[Output, ...]

# The function from logits to scores: sigmoid for one label or independent labels, softmax for exclusive labels, none
# for a regression.
Scoring: TypeAlias = Literal["sigmoid", "softmax", "none"]


# How two vectors are compared. The distances (euclidean, manhattan) are negative, so that larger means more similar.
Similarity: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]


class TruncationSide(str, Enum):
    """The end at which a text that is too long loses tokens."""

    RIGHT = "right"
    LEFT = "left"


def num_characters(text: Text) -> int:
    """Returns the number of characters of a text, or of both texts of a pair; 0 for token ids."""
    if isinstance(text, Pair):
        return len(text.first) + len(text.second)
    if isinstance(text, Templated):
        return len(text.text)
    return len(text) if isinstance(text, str) else 0


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """The options to tokenize the texts of one request."""

    truncate: bool = True  # False: a text that is too long is an error
    side: TruncationSide | None = None  # the end that loses tokens; None: the model's own
    prompt: str | None = None  # put before every text
    pool_prompt: bool = True  # whether pooling includes the tokens of the prompt
    chunk: bool = False  # split a text that is too long into chunks instead of truncating it
    chunk_tokens: int | None = None  # limit on the tokens of a text, or of the document of a pair; None: the model's
    spans: bool = False  # whether to set `Tokens.spans`: the part of the text that each token stands for
    max_tokens: int | None = None  # limit on all tokens of an input, with special tokens and prompt; None: the model's
    add_special_tokens: bool = True  # False: only the tokens of the text, without special tokens such as [CLS]


class TokenSpan(NamedTuple):
    """One token and the part of the text that it stands for: text[start:end]."""

    id: int
    token: str  # as the vocabulary spells it
    special: bool  # added by the tokenizer or part of the prompt; start and end are then 0
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one input: at least one, and at most the maximum length of the model."""

    ids: npt.NDArray[np.int32]  # [n]
    type_ids: npt.NDArray[np.int32]  # [n]
    skip: int = 0  # number of leading tokens that pooling leaves out
    spans: Sequence[TokenSpan] = ()  # [n] if EncodeOptions.spans, else empty

    def __len__(self) -> int:
        return len(self.ids)


def asks_for(outputs: Outputs, output: Output) -> bool:
    """Whether `outputs` is `output` or contains it."""
    return outputs == output or (isinstance(outputs, tuple) and output in outputs)


class Sparse(NamedTuple):
    """A sparse vector over the vocabulary: the nonzero elements of a row f32[V]."""

    indices: npt.NDArray[np.int64]  # [n], ascending
    values: npt.NDArray[np.float32]  # [n]

    @classmethod
    def of(cls, row: Rows) -> Sparse:
        """Returns the nonzero elements of a row f32[V]."""
        indices = np.flatnonzero(row)
        return cls(indices, row[indices])

    @classmethod
    def of_tokens(cls, ids: npt.NDArray[np.int32], weights: Rows) -> Sparse:
        """Returns the largest weight of each token id, if it is above 0; both arguments are [n]."""
        terms, places = np.unique(ids, return_inverse=True)
        values = np.zeros(len(terms), np.float32)
        np.maximum.at(values, places, weights)
        kept = values > 0
        return cls(terms[kept].astype(np.int64), values[kept])

    def without(self, indices: Sequence[int]) -> Sparse:
        """Returns the vector without the elements at `indices`."""
        kept = ~np.isin(self.indices, indices)
        return Sparse(self.indices[kept], self.values[kept])


class Task(Protocol[ResultT]):
    """What one request asks of the model; `ResultT` is the type of its result."""

    @property
    def output(self) -> Outputs:
        """The outputs of the model that the task needs for each input."""
        ...

    @property
    def inputs(self) -> Sequence[Text]:
        """The inputs to tokenize."""
        ...

    @property
    def options(self) -> EncodeOptions:
        """The options to tokenize the inputs."""
        ...

    def join(self, rows: Any, owners: npt.NDArray[np.intp], weights: Rows) -> Any:  # noqa: ANN401
        """Returns one output per input; `rows` has one output per chunk.

        Chunk i belongs to input owners[i] and has weights[i] tokens. Raises ValidationError if it cannot be chunked.
        """
        ...

    def finish(self, rows: Any) -> ResultT:  # noqa: ANN401
        """Returns the result; `rows` has one output per input, in the order of `inputs`."""
        ...


class _Unchunked:
    """Base of the tasks that cannot combine several chunks of one input."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Raises ValidationError if texts are to be divided."""
        if self.options.chunk:  # type: ignore[attr-defined]
            raise ValidationError("`chunk` works for dense embeddings and for scores only", param="chunk")

    def join(self, rows: Any, owners: npt.NDArray[np.intp], weights: Rows) -> Any:  # noqa: ANN401
        """Never called, because no input has several chunks."""
        raise NotImplementedError("this is a bug: an input has several chunks, which cannot be combined")


@dataclass(frozen=True, slots=True)
class Embed:
    """The task to compute dense embeddings, one vector per text."""

    output: ClassVar[Output] = "rows"

    inputs: Sequence[Text]
    options: EncodeOptions = field(default_factory=EncodeOptions)
    normalize: bool = True
    dimensions: int | None = None  # how many leading dimensions to keep (Matryoshka, Kusupati et al. 2022)

    def join(self, rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
        """Returns f32[N, D]: the mean of the vectors of each text's chunks, weighted by their numbers of tokens.

        With `normalize`, the vectors of the chunks are L2-normalised before the mean.
        """
        return weighted_mean(l2_normalize(rows) if self.normalize else rows, owners, weights)

    def finish(self, rows: Rows) -> Rows:
        """Returns f32[N, dimensions or D]: the rows cut to `dimensions`, then L2-normalised if `normalize`.

        Raises ValidationError if the model has fewer dimensions.
        """
        if self.dimensions is not None:
            check_dimensions(self.dimensions, rows.shape[1])
            rows = rows[:, : self.dimensions]
        return l2_normalize(rows) if self.normalize else rows


@dataclass(frozen=True, slots=True)
class EmbedAll(_Unchunked):
    """The task to compute one vector per token of each text.

    A late-interaction model and bge-m3 have a head for these vectors; in other models they are the pooling's input.
    """

    output: ClassVar[Output] = "tokens"
    inputs: Sequence[Text]
    options: EncodeOptions = field(default_factory=EncodeOptions)
    num_skipped: int = 0  # how many leading tokens of each text get no vector

    def finish(self, rows: Sequence[TokenRows]) -> Sequence[TokenRows]:
        """Returns f32[n - num_skipped, E] per text."""
        return [vectors[self.num_skipped :] for vectors in rows] if self.num_skipped else rows


@dataclass(frozen=True, slots=True)
class EmbedSparse(_Unchunked):
    """The task to compute weights of the vocabulary's terms, most of them 0 (SPLADE, Formal et al. 2021; bge-m3)."""

    output: ClassVar[Output] = "sparse"
    inputs: Sequence[Text]
    options: EncodeOptions = field(default_factory=EncodeOptions)
    unweighted_ids: Sequence[int] = ()  # token ids that get no weight, because they are not terms

    def finish(self, rows: Sequence[Sparse]) -> Sequence[Sparse]:
        """Returns the nonzero weights of each text, without those of `unweighted_ids`."""
        return [terms.without(self.unweighted_ids) for terms in rows] if self.unweighted_ids else rows


@dataclass(frozen=True, slots=True)
class Compute(_Unchunked):
    """The task to compute outputs of the model, without post-processing."""

    inputs: Sequence[Text]
    options: EncodeOptions
    output: Outputs

    def finish(self, rows: Any) -> Any:  # noqa: ANN401
        """Returns `rows`."""
        return rows


@dataclass(frozen=True, slots=True)
class Several(_Unchunked):
    """Several tasks with the same inputs and options, whose outputs are computed in one pass."""

    tasks: Sequence[Task[Any]]  # at least one

    @property
    def output(self) -> tuple[Output, ...]:
        """The output that each task needs for an input."""
        return tuple(task.output for task in self.tasks if isinstance(task.output, str))

    @property
    def inputs(self) -> Sequence[Text]:
        """The inputs to tokenize."""
        return self.tasks[0].inputs

    @property
    def options(self) -> EncodeOptions:
        """The options to tokenize the inputs."""
        return self.tasks[0].options

    def finish(self, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Returns the result of each task; `rows` has a tuple per input, with one output per task."""
        columns = zip(self.output, zip(*rows, strict=True), strict=True)
        arrays = [np.stack(column) if output == "rows" else column for output, column in columns]
        return [task.finish(array) for task, array in zip(self.tasks, arrays, strict=True)]


@dataclass(frozen=True, slots=True)
class ClassifyTokens(_Unchunked):
    """The task to score every token for each label."""

    output: ClassVar[Output] = "tokens"
    inputs: Sequence[Text]
    options: EncodeOptions
    scoring: Scoring

    def finish(self, rows: Sequence[TokenRows]) -> Sequence[TokenRows]:
        """Returns the scores f32[n, C] per text; the columns are in the order of the labels."""
        return [scores(logits, self.scoring) for logits in rows]


@dataclass(frozen=True, slots=True)
class Classify:
    """The task to score every input for each label; a reranker has one label, the relevance of a pair."""

    output: ClassVar[Output] = "rows"
    inputs: Sequence[Text]
    options: EncodeOptions
    scoring: Scoring

    def join(self, rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
        """Returns the logits f32[N, C] of the inputs, computed from the logits of their chunks.

        With one label it is the largest logit; with several labels, the mean weighted by the chunks' numbers of tokens.
        """
        if rows.shape[1] > 1:
            return weighted_mean(rows, owners, weights)
        return np.maximum.reduceat(rows, _first_chunks(owners))

    def finish(self, rows: Rows) -> Rows:
        """Returns the scores f32[N, C]; the columns are in the order of the labels."""
        return scores(rows, self.scoring)


@dataclass(frozen=True, slots=True)
class Rank(Classify):
    """The task to sort pairs by relevance; of the labels "no" and "yes", `_margin` makes one logit."""

    top_n: int | None = None  # how many pairs to keep; None: all

    def join(self, rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
        """Returns f32[N, 1]: the largest logit of the chunks of each pair."""
        return Classify.join(self, _margin(rows), owners, weights)

    def finish(self, rows: Rows) -> list[tuple[int, float]]:  # type: ignore[override]
        """Returns the index and the score of the `top_n` best pairs, the best first.

        Sorts by the logits, because in f32 the sigmoid of every logit above 17 is 1.
        """
        logits = _margin(rows)
        values = scores(logits, self.scoring)[:, 0]
        return [(index, float(values[index])) for index in best_first(logits[:, 0], self.top_n)]


def _margin(rows: Rows) -> Rows:
    """Returns f32[N, 1]: the logit of the one label, or the logit of "yes" minus that of "no"."""
    return rows if rows.shape[1] == 1 else rows[:, 1:] - rows[:, :1]


def weighted_mean(rows: Rows, owners: npt.NDArray[np.intp], weights: Rows) -> Rows:
    """Returns f32[N, D]: the mean of the rows of each owner, weighted by `weights`, one number per row.

    `owners` has the owner of each row, from 0 to N - 1 in ascending order, such as 0, 0, 1, 2.
    """
    firsts = _first_chunks(owners)
    means: Rows = np.add.reduceat(rows * weights[:, None], firsts)
    means /= np.add.reduceat(weights, firsts)[:, None]
    return means


def _first_chunks(owners: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Returns the index of each owner's first chunk."""
    return np.flatnonzero(np.diff(owners, prepend=-1))


def scores(logits: Rows, scoring: Scoring) -> Rows:
    """Returns the probabilities f32[N, C] of logits f32[N, C]; with "none", the logits unchanged."""
    if scoring == "none":
        return logits
    if scoring == "sigmoid":
        small = np.exp(-np.abs(logits))  # exp of a number <= 0 cannot overflow
        sigmoid: Rows = np.where(logits >= 0, 1, small) / (1 + small)
        return sigmoid
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax: Rows = exps / exps.sum(axis=1, keepdims=True)
    return softmax


def best_first(values: Rows, top_n: int | None = None) -> list[int]:
    """Returns at most `top_n` indices of f32[N], the largest value first; equal values keep their order."""
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order[:top_n]


def check_dimensions(dimensions: int, width: int, field: str = "dimensions") -> None:
    """Raises ValidationError, naming the field, unless `dimensions` is in 1..`width`, the width of the model's rows."""
    if not 1 <= dimensions <= width:
        raise ValidationError(f"`{field}` must be between 1 and {width}, got {dimensions}", param=field)


def l2_normalize(rows: Rows) -> Rows:
    """Returns the rows f32[N, D] with L2 norm 1; a row of zeros stays zero."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    unit: Rows = rows / np.maximum(norms, np.float32(1e-12))[:, None]  # the limit of torch.nn.functional.normalize
    return unit
