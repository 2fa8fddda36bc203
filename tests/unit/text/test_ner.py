"""Tokens to entities, on texts and scores whose entities can be told by hand; tests/golden has transformers' own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from bei_core.tasks import TokenSpan
from bei_core.text.ner import Entity, Strategy, drop_ignored, find_entities

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
UNKNOWN = 99


class WordPiece:
    """A tokenizer whose tokens show that they continue a word."""

    unknown_id = UNKNOWN
    marks_subwords = True

    def join(self, tokens: Sequence[str]) -> str:
        """As the decoder of that name."""
        return " ".join(tokens).replace(" ##", "")


class Bytes(WordPiece):
    """A tokenizer whose tokens do not show it."""

    marks_subwords = False

    def join(self, tokens: Sequence[str]) -> str:
        """As the byte-level decoder."""
        return "".join(tokens).replace("Ġ", " ")


TEXT = "Ada Lovelace in Rome"
TOKENS = [
    TokenSpan(1, "[CLS]", True, 0, 0),
    TokenSpan(2, "Ada", False, 0, 3),
    TokenSpan(3, "Love", False, 4, 8),
    TokenSpan(4, "##lace", False, 8, 12),
    TokenSpan(5, "in", False, 13, 15),
    TokenSpan(6, "Rome", False, 16, 20),
    TokenSpan(7, "[SEP]", True, 0, 0),
]


def rows(*best: tuple[str, float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """f32[n, 5]: of each token a label's score, the rest spread evenly."""
    found = np.zeros((len(best), len(LABELS)), np.float32)
    for row, (label, score) in zip(found, best, strict=True):
        row[:] = (1 - score) / (len(LABELS) - 1)
        row[LABELS.index(label)] = score
    return found


SCORES = rows(
    ("B-LOC", 0.9), ("B-PER", 0.9), ("I-PER", 0.6), ("I-LOC", 0.8), ("O", 0.9), ("B-LOC", 0.7), ("B-LOC", 0.9)
)


def spans(found: Sequence[Entity]) -> list[tuple[str, str, int, int]]:
    return [(entity.label, entity.word, entity.start, entity.end) for entity in found]


def test_none_is_each_token_with_its_best_label() -> None:
    found = find_entities(TEXT, TOKENS, SCORES, LABELS, WordPiece(), "none")
    assert spans(found) == [
        ("B-PER", "Ada", 0, 3),
        ("I-PER", "Love", 4, 8),
        ("I-LOC", "##lace", 8, 12),
        ("O", "in", 13, 15),
        ("B-LOC", "Rome", 16, 20),
    ]
    assert [entity.index for entity in found] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([entity.score for entity in found], [0.9, 0.6, 0.8, 0.9, 0.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("simple", [("PER", "Ada Love", 0, 8, 0.75), ("LOC", "##lace", 8, 12, 0.8)]),
        ("first", [("PER", "Ada Lovelace", 0, 12, 0.75)]),
        ("average", [("PER", "Ada", 0, 3, 0.9), ("LOC", "Lovelace", 4, 12, 0.45)]),
        ("max", [("PER", "Ada", 0, 3, 0.9), ("LOC", "Lovelace", 4, 12, 0.8)]),
    ],
)
def test_each_strategy_settles_a_word_its_own_way(
    strategy: Strategy, expected: list[tuple[str, str, int, int, float]]
) -> None:
    found = drop_ignored(find_entities(TEXT, TOKENS, SCORES, LABELS, WordPiece(), strategy), ["O"])
    assert spans(found) == [item[:4] for item in expected] + [("LOC", "Rome", 16, 20)]
    np.testing.assert_allclose([entity.score for entity in found[:-1]], [item[4] for item in expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("B-PER", "B-PER"), [("PER", "a", 0, 1), ("PER", "b", 2, 3)]),
        (("B-PER", "I-PER"), [("PER", "a b", 0, 3)]),
        (("I-PER", "I-LOC"), [("PER", "a", 0, 1), ("LOC", "b", 2, 3)]),
        (("O", "I-PER"), [("O", "a", 0, 1), ("PER", "b", 2, 3)]),
        (("O", "O"), [("O", "a b", 0, 3)]),
    ],
)
def test_b_begins_an_entity_and_i_goes_on_with_its_like(
    labels: tuple[str, str], expected: list[tuple[str, str, int, int]]
) -> None:
    tokens = [TokenSpan(2, "a", False, 0, 1), TokenSpan(3, "b", False, 2, 3)]
    scores = rows(*((label, 0.9) for label in labels))
    assert spans(find_entities("a b", tokens, scores, LABELS, WordPiece(), "simple")) == expected


def test_labels_without_b_and_i_are_used_as_they_are() -> None:
    tokens = [TokenSpan(2, "a", False, 0, 1), TokenSpan(3, "b", False, 2, 3), TokenSpan(4, "c", False, 4, 5)]
    scores = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    found = find_entities("a b c", tokens, scores, ("LABEL_0", "S-PER"), WordPiece(), "simple")
    assert spans(found) == [("LABEL_0", "a b", 0, 3), ("PER", "c", 4, 5)]


def test_an_unknown_token_is_a_word_of_its_own_and_shows_the_text() -> None:
    tokens = [TokenSpan(2, "a", False, 0, 1), TokenSpan(UNKNOWN, "[UNK]", False, 1, 3)]
    found = find_entities("aß̈", tokens, rows(("B-PER", 0.9), ("B-LOC", 0.9)), LABELS, WordPiece(), "first")
    assert spans(found) == [("PER", "a", 0, 1), ("LOC", "ß̈", 1, 3)]


def test_words_end_at_spaces_where_tokens_do_not_say() -> None:
    tokens = [TokenSpan(2, "Ada", False, 0, 3), TokenSpan(3, "Ġin", False, 4, 6), TokenSpan(4, ",", False, 6, 7)]
    found = find_entities("Ada in,", tokens, rows(("B-PER", 0.9), ("B-LOC", 0.9), ("O", 0.9)), LABELS, Bytes(), "first")
    assert spans(found) == [("PER", "Ada", 0, 3), ("LOC", " in,", 4, 7)]


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_a_text_of_special_tokens_alone_has_no_entities(strategy: Strategy) -> None:
    assert find_entities("", [TOKENS[0]], SCORES[:1], LABELS, WordPiece(), strategy) == []


def test_a_row_is_needed_for_every_token() -> None:
    with pytest.raises(ValueError, match="zip"):
        find_entities(TEXT, TOKENS, SCORES[1:], LABELS, WordPiece(), "none")
