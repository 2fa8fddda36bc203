"""Labels of tokens to entities of a text, as transformers 5.23's token classification pipeline has them.

Its rules are those of `pipelines/token_classification.py`. Some surprise: a group is named for what follows the first
hyphen of its label, whatever comes before; a token that is unknown to the vocabulary begins a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from bei_core.tasks import TokenRows

Strategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]

_Item = TypeVar("_Item")

Scores: TypeAlias = npt.NDArray[np.float32]  # [C], one token's, or one word's


class Piece(NamedTuple):
    """One token of a text."""

    id: int
    token: str  # as the vocabulary spells it
    special: bool  # of the model's, or of a prompt: no part of the text
    start: int  # text[start:end] is what it stands for
    end: int


class Vocabulary(Protocol):
    """What the rules need to know of a tokenizer."""

    @property
    def unknown_id(self) -> int | None:
        """The id of whatever has no token of its own."""
        ...

    @property
    def marks_subwords(self) -> bool:
        """Whether a token that goes on with a word says so, as WordPiece's `##` does."""
        ...

    def join(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Entity:
    """A token, or several side by side, with the label that was chosen."""

    label: str  # with its B- or I-, unless several tokens were asked to be one
    score: float
    word: str
    start: int
    end: int
    index: int  # of its first token


@dataclass(frozen=True, slots=True)
class _Part:
    """A token or a word on its way to be an entity."""

    word: str
    scores: Scores
    start: int
    end: int
    index: int
    goes_on: bool = False  # with the word that the token before it is in


def entities(
    text: str, pieces: Sequence[Piece], rows: TokenRows, labels: Sequence[str], words: Vocabulary, strategy: Strategy
) -> list[Entity]:
    """The entities of a text, in its order; row i of `rows` f32[n, C] holds the scores of piece i for each label."""
    parts = [_part(text, piece, row, index, words) for index, (piece, row) in enumerate(zip(pieces, rows, strict=True))]
    parts = [part for part, piece in zip(parts, pieces, strict=True) if not piece.special]
    if strategy in _MERGES:
        parts = [_merged(group, words, _MERGES[strategy]) for group in _grouped(parts, lambda last, part: part.goes_on)]
    found = [_entity(part, labels) for part in parts]
    return found if strategy == "none" else [_group(group, words) for group in _grouped(found, _is_one)]


def without(found: Iterable[Entity], ignored: Collection[str]) -> list[Entity]:
    """The entities whose label is none of `ignored`."""
    return [entity for entity in found if entity.label not in ignored]


def _part(text: str, piece: Piece, scores: Scores, index: int, words: Vocabulary) -> _Part:
    span = text[piece.start : piece.end]
    if piece.id == words.unknown_id:
        return _Part(span, scores, piece.start, piece.end, index)
    if words.marks_subwords:
        goes_on = len(piece.token) != len(span)
    else:
        goes_on = piece.start > 0 and " " not in text[piece.start - 1 : piece.start + 1]
    return _Part(piece.token, scores, piece.start, piece.end, index, goes_on)


def _entity(part: _Part, labels: Sequence[str]) -> Entity:
    best = int(part.scores.argmax())
    return Entity(labels[best], float(part.scores[best]), part.word, part.start, part.end, part.index)


def _of_first(rows: TokenRows) -> Scores:
    first: Scores = rows[0]
    return first


def _of_surest(rows: TokenRows) -> Scores:
    surest: Scores = rows[int(rows.max(axis=1).argmax())]
    return surest


def _of_all(rows: TokenRows) -> Scores:
    mean: Scores = rows.mean(axis=0)
    return mean


# Which of its tokens' scores a word has.
_MERGES: dict[Strategy, Callable[[TokenRows], Scores]] = {"first": _of_first, "average": _of_all, "max": _of_surest}


def _merged(parts: Sequence[_Part], words: Vocabulary, merge: Callable[[TokenRows], Scores]) -> _Part:
    """One part of the tokens of a word."""
    word, scores = words.join([part.word for part in parts]), merge(np.stack([part.scores for part in parts]))
    return _Part(word, scores, parts[0].start, parts[-1].end, parts[0].index)


def _is_one(last: Entity, entity: Entity) -> bool:
    """Whether an entity goes on with the one before it."""
    begins, tag = _tag(entity.label)
    return not begins and tag == _tag(last.label)[1]


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of what kind it is; one without B- or I- goes on with its like."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _group(group: Sequence[Entity], words: Vocabulary) -> Entity:
    """One entity of those that go together."""
    score = float(np.mean(np.array([entity.score for entity in group], np.float32)))
    word = words.join([entity.word for entity in group])
    return Entity(group[0].label.split("-", 1)[-1], score, word, group[0].start, group[-1].end, group[0].index)


def _grouped(items: Sequence[_Item], goes_on: Callable[[_Item, _Item], bool]) -> list[list[_Item]]:
    """Items side by side, where each but a list's first goes on with the one before it."""
    groups: list[list[_Item]] = []
    for item in items:
        if groups and goes_on(groups[-1][-1], item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
