"""Texts in pieces: nothing is lost, every piece fits, what goes with a document stays with each of its pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bei_core.errors import Validation
from bei_core.tasks import Classify, Embed, Encoding, Pair, Rank, Templated, TruncationSide, l2_normalize
from bei_core.templates import RerankTemplate
from bei_core.tokens import TextTokenizer
from tests.golden.cases import CLASSIFICATION_CASES

FILE = next(case.folder for case in CLASSIFICATION_CASES if case.architecture.startswith("Bert")) / "tokenizer.json"
LONG = " ".join(f"word{number} and more" for number in range(60))
CHUNKED = Encoding(truncate=False, chunk=True)


def tokenizer(max_seq_len: int = 40) -> TextTokenizer:
    return TextTokenizer(Path(FILE), max_seq_len=max_seq_len, vocab_size=10_000)


def whole(text: str | Pair) -> list[int]:
    return tokenizer(100_000).encode_now([text], Encoding())[0].ids.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("room", [None, 1, 7, 38, 1000])
def test_the_pieces_of_a_text_are_its_tokens_in_order(room: int | None) -> None:
    tokens, owners = tokenizer().split_now(["short", LONG, "last"], Encoding(False, chunk=True, chunk_tokens=room))
    assert np.array_equal(np.unique(owners), [0, 1, 2])
    assert (np.diff(owners) >= 0).all()
    assert all(len(item) <= min(40, (room or 40) + 2) for item in tokens)
    first, *inside, last = whole(LONG)
    pieces = [item.ids.tolist() for item, owner in zip(tokens, owners, strict=True) if owner == 1]
    assert all((piece[0], piece[-1]) == (first, last) for piece in pieces)
    assert [token for piece in pieces for token in piece[1:-1]] == inside


def test_a_text_that_fits_is_what_it_is_without() -> None:
    ((piece,), _) = tokenizer().split_now(["a short text"], CHUNKED)
    (alone,) = tokenizer().encode_now(["a short text"], Encoding())
    assert piece.ids.tolist() == alone.ids.tolist()


def test_every_piece_of_a_pair_has_the_whole_query() -> None:
    tokens, _ = tokenizer().split_now([Pair("the query", LONG)], CHUNKED)
    query = whole("the query")
    assert len(tokens) > 3
    assert all(item.ids.tolist()[: len(query)] == query for item in tokens)
    joined = [token for item in tokens for token in item.ids.tolist()[len(query) : -1]]
    assert joined == whole(Pair("the query", LONG))[len(query) : -1]
    assert all(item.type_ids[-1] == 1 for item in tokens)


def test_a_prompt_keeps_all_but_its_document() -> None:
    template = RerankTemplate("own", "find {query} in {document} answer now")
    (cut,) = tokenizer().encode_now([template.fill("it", LONG)], Encoding())
    empty = whole("find it in  answer now")
    assert len(cut) == 40
    assert cut.ids.tolist()[:3] == empty[:3]
    assert cut.ids.tolist()[-3:] == empty[-3:]
    pieces, _ = tokenizer().split_now([template.fill("it", LONG)], CHUNKED)
    assert all(piece.ids.tolist()[-3:] == empty[-3:] for piece in pieces)


def test_a_prompt_that_fits_is_the_text_as_it_stands() -> None:
    (item,) = tokenizer().encode_now([Templated("see this text", 4, 8)], Encoding())
    assert item.ids.tolist() == whole("see this text")


@pytest.mark.parametrize("text", [Pair(LONG, "document"), Templated(LONG + " document", len(LONG) + 1, len(LONG) + 9)])
def test_a_query_that_leaves_no_room_is_refused(text: Pair | Templated) -> None:
    with pytest.raises(Validation, match="leaves no room"):
        tokenizer().split_now([text], CHUNKED)


def test_more_pieces_than_a_request_may_have_are_refused() -> None:
    with pytest.raises(Validation, match="at most 1024"):
        tokenizer().split_now([LONG] * 8, Encoding(False, chunk=True, chunk_tokens=1))


@pytest.mark.parametrize(("side", "kept"), [(TruncationSide.RIGHT, slice(1, 6)), (TruncationSide.LEFT, slice(-6, -1))])
def test_a_length_alone_cuts(side: TruncationSide, kept: slice) -> None:
    ((item,), owners) = tokenizer().split_now([LONG], Encoding(True, side, chunk_tokens=5))
    assert item.ids.tolist()[1:-1] == whole(LONG)[kept]
    assert owners.tolist() == [0]


def test_token_ids_are_split_as_they_are() -> None:
    tokens, _ = tokenizer().split_now([list(range(5, 105))], CHUNKED)
    assert [len(item) for item in tokens] == [40, 40, 20]
    assert np.concatenate([item.ids for item in tokens]).tolist() == list(range(5, 105))


OWNERS, WEIGHTS = np.array([0, 0, 1]), np.array([3, 1, 2], np.float32)


def test_vectors_of_pieces_are_averaged_by_their_tokens() -> None:
    rows = np.array([[3, 4], [0, 2], [1, 0]], np.float32)
    unit = l2_normalize(rows)
    joined = Embed(["a", "b"]).join(rows, OWNERS, WEIGHTS)
    assert np.allclose(joined, [(3 * unit[0] + unit[1]) / 4, unit[2]])
    assert np.allclose(Embed(["a", "b"], normalize=False).join(rows, OWNERS, WEIGHTS)[0], [2.25, 3.5])


def test_the_best_piece_of_a_document_counts() -> None:
    rows = np.array([[-1], [2], [0.5]], np.float32)
    assert Rank(["a", "b"], Encoding(), "none").join(rows, OWNERS, WEIGHTS).tolist() == [[2], [0.5]]
    assert Classify(["a", "b"], Encoding(), "none").join(rows, OWNERS, WEIGHTS).tolist() == [[2], [0.5]]


def test_of_two_labels_the_margin_ranks() -> None:
    rows = np.array([[1, 3], [2, 1], [0, 0]], np.float32)
    task = Rank(["a", "b"], Encoding(), "none")
    assert task.finish(task.join(rows, OWNERS, WEIGHTS)).tolist() == [[2], [0]]


def test_scores_of_several_labels_are_averaged() -> None:
    rows = np.array([[4, 0], [0, 4], [1, 1]], np.float32)
    assert Classify(["a", "b"], Encoding(), "none").join(rows, OWNERS, WEIGHTS).tolist() == [[3, 1], [1, 1]]
