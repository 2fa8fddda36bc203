"""Finds the named entities of a text from the scores of its tokens, by the rules of transformers 5.23.

The rules are in its `pipelines/token_classification.py`. Two of them are surprising. The label of a group is the part
after the first hyphen, even if the part before it is not B or I. An unknown token always begins a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from bei_core.tasks import TokenRows, TokenSpan

Strategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]

_Item = TypeVar("_Item")

Scores: TypeAlias = npt.NDArray[np.float32]  # [C]: the scores of one token or word for each label


class Vocabulary(Protocol):
    """The part of a tokenizer that the rules use."""

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown token; None if there is none."""
        ...

    @property
    def marks_subwords(self) -> bool:
        """Whether tokens that continue a word have a prefix, as in WordPiece."""
        ...

    def join(self, tokens: Sequence[str]) -> str:
        """Returns the text of tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Entity:
    """A token or several adjacent tokens, with one label."""

    label: str  # without the prefix B- or I-, except with strategy "none"
    score: float
    word: str
    start: int  # the entity is text[start:end]
    end: int
    index: int  # of the first token


@dataclass(frozen=True, slots=True)
class _Part:
    """A token or a word with its scores."""

    word: str
    scores: Scores
    start: int  # the part is text[start:end]
    end: int
    index: int  # of the first token
    continues: bool = False  # whether it belongs to the same word as the previous token


def find_entities(
    text: str,
    tokens: Sequence[TokenSpan],
    rows: TokenRows,
    labels: Sequence[str],
    words: Vocabulary,
    strategy: Strategy,
) -> list[Entity]:
    """Returns the entities of a text in order. Row i of `rows` f32[n, C] has the scores of token i for each label."""
    pairs = zip(tokens, rows, strict=True)
    parts = [_part(text, token, row, index, words) for index, (token, row) in enumerate(pairs)]
    parts = [part for part, token in zip(parts, tokens, strict=True) if not token.special]
    if strategy in _MERGES:
        groups = _grouped(parts, lambda last, part: part.continues)
        parts = [_merged(group, words, _MERGES[strategy]) for group in groups]
    found = [_entity(part, labels) for part in parts]
    return found if strategy == "none" else [_group(group, words) for group in _grouped(found, _is_same_entity)]


def drop_ignored(found: Iterable[Entity], ignored: Collection[str]) -> list[Entity]:
    """Returns the entities whose label is not in `ignored`."""
    return [entity for entity in found if entity.label not in ignored]


def _part(text: str, token: TokenSpan, scores: Scores, index: int, words: Vocabulary) -> _Part:
    span = text[token.start : token.end]
    if token.id == words.unknown_id:
        return _Part(span, scores, token.start, token.end, index)
    if words.marks_subwords:
        continues = len(token.token) != len(span)
    else:
        continues = token.start > 0 and " " not in text[token.start - 1 : token.start + 1]
    return _Part(token.token, scores, token.start, token.end, index, continues)


def _entity(part: _Part, labels: Sequence[str]) -> Entity:
    best = int(part.scores.argmax())
    return Entity(labels[best], float(part.scores[best]), part.word, part.start, part.end, part.index)


def _first(rows: TokenRows) -> Scores:
    first: Scores = rows[0]
    return first


def _surest(rows: TokenRows) -> Scores:
    surest: Scores = rows[int(rows.max(axis=1).argmax())]
    return surest


def _mean(rows: TokenRows) -> Scores:
    mean: Scores = rows.mean(axis=0)
    return mean


# The function from the scores of a word's tokens to the scores of the word.
_MERGES: dict[Strategy, Callable[[TokenRows], Scores]] = {"first": _first, "average": _mean, "max": _surest}


def _merged(parts: Sequence[_Part], words: Vocabulary, merge: Callable[[TokenRows], Scores]) -> _Part:
    """Returns the tokens of a word as one part; `merge` computes its scores from the scores of the tokens."""
    word, scores = words.join([part.word for part in parts]), merge(np.stack([part.scores for part in parts]))
    return _Part(word, scores, parts[0].start, parts[-1].end, parts[0].index)


def _is_same_entity(last: Entity, entity: Entity) -> bool:
    """Whether a token belongs to the same entity as the previous token `last`."""
    begins, tag = _tag(entity.label)
    return not begins and tag == _tag(last.label)[1]


def _tag(label: str) -> tuple[bool, str]:
    """Returns whether a label begins an entity, and its tag; a label without B- or I- does not begin one."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _group(group: Sequence[Entity], words: Vocabulary) -> Entity:
    """Returns several tokens as one entity with the mean of their scores."""
    score = float(np.mean(np.array([entity.score for entity in group], np.float32)))
    word = words.join([entity.word for entity in group])
    return Entity(group[0].label.split("-", 1)[-1], score, word, group[0].start, group[-1].end, group[0].index)


def _grouped(items: Sequence[_Item], continues: Callable[[_Item, _Item], bool]) -> list[list[_Item]]:
    """Returns lists of adjacent items; an item joins the list of the previous one if `continues(previous, item)`."""
    groups: list[list[_Item]] = []
    for item in items:
        if groups and continues(groups[-1][-1], item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
