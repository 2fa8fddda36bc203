"""Texts in chunks: no token is lost, every chunk fits, the query or prompt is in every chunk of its document."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from bei_core.errors import EmptyInputError, ValidationError
from bei_core.tasks import Classify, Embed, EncodeOptions, Pair, Rank, Templated, TruncationSide, l2_normalize
from bei_core.text.templates import RerankTemplate
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import CASES, CLASSIFICATION_CASES
from tests.golden.texts import mixed_texts

FILE = next(case.folder for case in CLASSIFICATION_CASES if case.architecture.startswith("Bert")) / "tokenizer.json"
LONG = " ".join(f"word{number} and more" for number in range(60))
CHUNKED = EncodeOptions(truncate=False, chunk=True)
PROMPT = "find this: "
KINDS = ["bert-cls-normalize", "roberta-sqrt-dense-identity", "xlmr-cls-f16-sharded", "mpnet-mean-normalize"]
FOLDERS = {case.name: case.folder for case in CASES}


def tokenizer(max_seq_len: int = 40) -> TextTokenizer:
    return TextTokenizer(Path(FILE), max_seq_len=max_seq_len, vocab_size=10_000)


def whole(text: str | Pair) -> list[int]:
    return tokenizer(100_000).encode_now([text], EncodeOptions())[0].ids.tolist()  # type: ignore[no-any-return]


@cache
def kind_of(kind: str, max_seq_len: int) -> TextTokenizer:
    vocab_size = json.loads((FOLDERS[kind] / "config.json").read_text())["vocab_size"]
    return TextTokenizer(FOLDERS[kind] / "tokenizer.json", max_seq_len=max_seq_len, vocab_size=vocab_size)


@pytest.fixture
def bytewise(tmp_path: Path) -> TextTokenizer:
    """A byte-level tokenizer as decoders have it: a word's token includes the space before it; no special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "\u0120a", "b!"])}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("\u0120", "a"), ("b", "!")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<end>"])
    library.save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer(tmp_path / "tokenizer.json", max_seq_len=12, vocab_size=1000)


def test_the_tokens_of_a_text_are_read_once_for_all_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 250,000 tokens took 20 s: each of its chunks read all of them, which holds the GIL for 10 ms."""
    bert, read = tokenizer(), list[str]()
    encode = bert._encode

    class Watched:
        def __init__(self, encoding: tokenizers.Encoding) -> None:
            self._encoding = encoding

        def __len__(self) -> int:
            return len(self._encoding)

        def __getattr__(self, name: str) -> object:
            read.append(name)
            return getattr(self._encoding, name)

    monkeypatch.setattr(bert, "_encode", lambda *given, **how: map(Watched, encode(*given, **how)))
    chunks, _ = bert.chunk_now([LONG], EncodeOptions(chunk=True, prompt=PROMPT))
    assert len(chunks) > 5
    assert read.count("ids") <= 2  # once more to check them
    assert read.count("type_ids") == read.count("sequence_ids") == 1
    assert "offsets" not in read


def test_too_many_tokens_to_chunk_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    bert = tokenizer()
    monkeypatch.setattr("bei_core.text.tokenizer.document_tokens", lambda *_: pytest.fail("they are read"))
    with pytest.raises(ValidationError, match="too many chunks"):
        bert.chunk_now(["a " * 41_001], CHUNKED)


@pytest.mark.parametrize("kind", KINDS)
def test_the_chunks_of_every_tokenizer_are_its_tokens_in_order(kind: str) -> None:
    long, short = kind_of(kind, 100_000), kind_of(kind, 24)
    for text in mixed_texts()[::7]:
        (expected,) = long.encode_now([text], EncodeOptions())
        chunks, _ = short.chunk_now([text], CHUNKED)
        assert all(len(chunk) <= 24 for chunk in chunks)
        assert [id_ for chunk in chunks for id_ in chunk.ids.tolist()[1:-1]] == expected.ids.tolist()[1:-1]
        if len(expected) <= 24:
            assert [chunk.ids.tolist() for chunk in chunks] == [expected.ids.tolist()]


@pytest.mark.parametrize("room", [None, 1, 7, 38, 1000])
def test_the_chunks_of_a_text_are_its_tokens_in_order(room: int | None) -> None:
    tokens, owners = tokenizer().chunk_now(["short", LONG, "last"], EncodeOptions(False, chunk=True, chunk_tokens=room))
    assert np.array_equal(np.unique(owners), [0, 1, 2])
    assert (np.diff(owners) >= 0).all()
    assert all(len(item) <= min(40, (room or 40) + 2) for item in tokens)
    first, *inside, last = whole(LONG)
    chunks = [item.ids.tolist() for item, owner in zip(tokens, owners, strict=True) if owner == 1]
    assert all((chunk[0], chunk[-1]) == (first, last) for chunk in chunks)
    assert [token for chunk in chunks for token in chunk[1:-1]] == inside


def test_a_text_that_fits_has_the_same_tokens_without_chunking() -> None:
    ((chunk,), _) = tokenizer().chunk_now(["a short text"], CHUNKED)
    (alone,) = tokenizer().encode_now(["a short text"], EncodeOptions())
    assert chunk.ids.tolist() == alone.ids.tolist()


def test_every_chunk_of_a_pair_has_the_whole_query() -> None:
    tokens, _ = tokenizer().chunk_now([Pair("the query", LONG)], CHUNKED)
    query = whole("the query")
    assert len(tokens) > 3
    assert all(item.ids.tolist()[: len(query)] == query for item in tokens)
    joined = [token for item in tokens for token in item.ids.tolist()[len(query) : -1]]
    assert joined == whole(Pair("the query", LONG))[len(query) : -1]
    assert all(item.type_ids[-1] == 1 for item in tokens)


def test_a_prompt_keeps_all_but_its_document() -> None:
    template = RerankTemplate("own", "find {query} in {document} answer now")
    (cut,) = tokenizer().encode_now([template.fill("it", LONG)], EncodeOptions())
    empty = whole("find it in  answer now")
    assert len(cut) == 40
    assert cut.ids.tolist()[:3] == empty[:3]
    assert cut.ids.tolist()[-3:] == empty[-3:]
    chunks, _ = tokenizer().chunk_now([template.fill("it", LONG)], CHUNKED)
    assert all(chunk.ids.tolist()[-3:] == empty[-3:] for chunk in chunks)


def test_a_prompt_whose_document_comes_first_keeps_the_query() -> None:
    """CrossEncoder keeps only the text after the query, so that a long document pushes the query out."""
    template = RerankTemplate("own", "{document} is the text for {query} now")
    (cut,) = tokenizer().encode_now([template.fill("it", LONG)], EncodeOptions())
    rest = whole("is the text for it now")[1:]
    assert len(cut) == 40
    assert cut.ids.tolist()[-len(rest) :] == rest


def test_a_token_that_ends_in_the_rest_of_the_prompt_stays(bytewise: TextTokenizer) -> None:
    (cut,) = bytewise.encode_now([Templated("q" + "b" * 20 + "!<end>", 1, 21)], EncodeOptions())
    assert bytewise.decode(cut.ids.tolist(), skip_special_tokens=False) == "q" + "b" * 10 + "!<end>"


def test_a_special_token_at_the_end_of_a_prompt_is_pooled(bytewise: TextTokenizer) -> None:
    (tokens,) = bytewise.encode_now(["abc"], EncodeOptions(prompt="ab<end>", pool_prompt=False))
    assert (len(tokens), tokens.skip) == (6, 2)  # as sentence-transformers has it


@pytest.mark.parametrize("side", TruncationSide)
def test_a_prompt_whose_document_is_huge_is_cut_before_it_is_tokenized(side: TruncationSide) -> None:
    template, many = RerankTemplate("own", "find {query} in {document} answer now"), LONG + " " + LONG * 30
    far = "\ud800"  # what the tokenizer would refuse
    many = many + far if side is TruncationSide.RIGHT else far + many
    (huge,) = tokenizer().encode_now([template.fill("it", many)], EncodeOptions(side=side))
    few = LONG if side is TruncationSide.RIGHT else many[-len(LONG) :]
    (expected,) = tokenizer().encode_now([template.fill("it", few)], EncodeOptions(side=side))
    assert huge.ids.tolist() == expected.ids.tolist()
    with pytest.raises(ValidationError, match="characters"):
        tokenizer().encode_now([template.fill("it", many)], EncodeOptions(truncate=False))
    with pytest.raises(ValidationError, match="leaves no tokens"):
        tokenizer().encode_now([template.fill(many, "it")], EncodeOptions())


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_document_is_cut_whatever_it_is_written_in(kind: str) -> None:
    template = RerankTemplate("own", "q {query} d {document} end")
    for document in ("\U0001f44b\U0001f3fd " * 40, "\u0c95\u0ccd \u4f60\u597d " * 20, "G W " * 40):
        chunks, _ = kind_of(kind, 24).chunk_now([template.fill("it", document)], CHUNKED)
        (head,) = kind_of(kind, 100).encode_now(["q it d"], EncodeOptions())
        (tail,) = kind_of(kind, 100).encode_now(["q end"], EncodeOptions())
        assert all(len(chunk) <= 24 for chunk in chunks)
        assert all(chunk.ids.tolist()[: len(head) - 1] == head.ids.tolist()[:-1] for chunk in chunks)
        assert all(chunk.ids[-1] == tail.ids[-1] and chunk.ids[-2] == tail.ids[-2] for chunk in chunks)


def test_a_first_word_is_in_one_chunk_also_where_its_token_has_the_space_before_it(bytewise: TextTokenizer) -> None:
    chunks, _ = bytewise.chunk_now([Templated("q a" + " b" * 8 + "<end>", 2, 19)], CHUNKED)
    texts = [bytewise.decode(chunk.ids.tolist(), skip_special_tokens=False) for chunk in chunks]
    assert texts == ["q a b b b b <end>", "qb b b b<end>"]


def test_a_prompt_that_fits_is_tokenized_as_one_text() -> None:
    (item,) = tokenizer().encode_now([Templated("see this text", 4, 8)], EncodeOptions())
    assert item.ids.tolist() == whole("see this text")


@pytest.mark.parametrize("text", [Pair(LONG, "document"), Templated(LONG + " document", len(LONG) + 1, len(LONG) + 9)])
def test_a_query_that_leaves_no_tokens_for_the_document_is_refused(text: Pair | Templated) -> None:
    with pytest.raises(ValidationError, match="leaves no tokens"):
        tokenizer().chunk_now([text], CHUNKED)


@pytest.mark.parametrize("text", ["", Pair("", ""), []], ids=str)
def test_what_is_empty_is_refused(text: str | Pair | Templated | list[int]) -> None:
    with pytest.raises(EmptyInputError):
        tokenizer().chunk_now([text], CHUNKED)
    with pytest.raises(EmptyInputError):
        tokenizer().chunk_now([], CHUNKED)


@pytest.mark.parametrize("text", [" ", Templated("   ", 1, 2)], ids=["text", "prompt"])
def test_a_text_without_tokens_is_refused(text: str | Templated, tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(EmptyInputError, match="no tokens"):
        TextTokenizer(tmp_path / "tokenizer.json", max_seq_len=8, vocab_size=1).chunk_now([text], CHUNKED)


def test_every_chunk_has_the_prompt_and_pooling_leaves_it_out() -> None:
    how = EncodeOptions(prompt=PROMPT, pool_prompt=False, chunk=True)
    chunks, _ = tokenizer().chunk_now([LONG], how)
    skip = len(whole(PROMPT)) - 1
    assert len(chunks) > 3
    assert {(tuple(chunk.ids[:skip]), chunk.skip) for chunk in chunks} == {(tuple(whole(PROMPT)[:-1]), skip)}
    assert [id_ for chunk in chunks for id_ in chunk.ids.tolist()[skip:-1]] == whole(LONG)[1:-1]
    assert all(chunk.skip < len(chunk) for chunk in chunks)


@pytest.mark.parametrize("max_seq_len", [16, 8192])
def test_a_text_too_long_to_chunk_is_refused_before_it_is_read(max_seq_len: int) -> None:
    with pytest.raises(ValidationError, match="at most 1000000 characters can be chunked, not 1000001"):
        tokenizer(max_seq_len).chunk_now(["a" * 1_000_001], CHUNKED)


def test_more_chunks_than_a_request_may_have_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most 1024"):
        tokenizer().chunk_now([LONG] * 8, EncodeOptions(False, chunk=True, chunk_tokens=1))


@pytest.mark.parametrize(("side", "kept"), [(TruncationSide.RIGHT, slice(1, 6)), (TruncationSide.LEFT, slice(-6, -1))])
def test_a_chunk_length_with_truncation_gives_one_chunk(side: TruncationSide, kept: slice) -> None:
    ((item,), owners) = tokenizer().chunk_now([LONG], EncodeOptions(True, side, chunk_tokens=5))
    assert item.ids.tolist()[1:-1] == whole(LONG)[kept]
    assert owners.tolist() == [0]


def test_an_input_over_the_requested_length_is_refused_without_truncation() -> None:
    ids = list(range(5, 105))
    for text in (LONG, Pair("query", LONG), ids):
        with pytest.raises(ValidationError, match="less than 40 tokens"):
            tokenizer().chunk_now([text], EncodeOptions(truncate=False, chunk_tokens=90))
    ((cut,), _) = tokenizer().chunk_now([ids], EncodeOptions(truncate=False, chunk_tokens=9))
    assert cut.ids.tolist() == ids[:9]


def test_token_ids_are_split_as_they_are() -> None:
    tokens, _ = tokenizer().chunk_now([list(range(5, 105))], CHUNKED)
    assert [len(item) for item in tokens] == [40, 40, 20]
    assert np.concatenate([item.ids for item in tokens]).tolist() == list(range(5, 105))


OWNERS, WEIGHTS = np.array([0, 0, 1]), np.array([3, 1, 2], np.float32)


def test_vectors_of_chunks_are_averaged_by_their_tokens() -> None:
    rows = np.array([[3, 4], [0, 2], [1, 0]], np.float32)
    unit = l2_normalize(rows)
    joined = Embed(["a", "b"]).join(rows, OWNERS, WEIGHTS)
    assert np.allclose(joined, [(3 * unit[0] + unit[1]) / 4, unit[2]])
    assert np.allclose(Embed(["a", "b"], normalize=False).join(rows, OWNERS, WEIGHTS)[0], [2.25, 3.5])


def test_the_best_chunk_of_a_document_counts() -> None:
    rows = np.array([[-1], [2], [0.5]], np.float32)
    assert Rank(["a", "b"], EncodeOptions(), "none").join(rows, OWNERS, WEIGHTS).tolist() == [[2], [0.5]]
    assert Classify(["a", "b"], EncodeOptions(), "none").join(rows, OWNERS, WEIGHTS).tolist() == [[2], [0.5]]


def test_of_two_labels_the_margin_ranks() -> None:
    rows = np.array([[1, 3], [2, 1], [0, 0]], np.float32)
    task = Rank(["a", "b"], EncodeOptions(), "none")
    assert task.finish(task.join(rows, OWNERS, WEIGHTS)) == [(0, 2.0), (1, 0.0)]


def test_scores_of_several_labels_are_averaged() -> None:
    rows = np.array([[4, 0], [0, 4], [1, 1]], np.float32)
    assert Classify(["a", "b"], EncodeOptions(), "none").join(rows, OWNERS, WEIGHTS).tolist() == [[3, 1], [1, 1]]
