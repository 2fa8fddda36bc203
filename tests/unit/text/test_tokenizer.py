"""Token ids are those of the model's own tokenizer, truncated as its library does it."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, EmptyInputError, TokenizerError, ValidationError
from bei_core.tasks import EncodeOptions, Pair, Templated, Text, Tokens, TruncationSide
from bei_core.text.tokenizer import INLINE_CHARS, TextTokenizer
from tests.golden.cases import CASES, Case, load_minilm
from tests.golden.texts import mixed_texts

PLAIN = EncodeOptions()
REFUSE = EncodeOptions(truncate=False)
SIDES = {"right": TruncationSide.RIGHT, "left": TruncationSide.LEFT}

# One tokenizer of each kind that the goldens have: WordPiece, byte-level BPE, Unigram, and RoBERTa-style WordPiece.
KINDS = ["bert-cls-normalize", "roberta-sqrt-dense-identity", "xlmr-cls-f16-sharded", "mpnet-mean-normalize"]
FOLDERS = {case.name: case.folder for case in CASES}


@cache
def tokenizer_of(folder: Path, max_seq_len: int = 512, *, lower_case: bool = False) -> TextTokenizer:
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    path = folder / "tokenizer.json"
    return TextTokenizer(path, max_seq_len=max_seq_len, vocab_size=vocab_size, lower_case=lower_case)


@pytest.fixture
def bert(minilm: Checkpoint) -> TextTokenizer:
    return tokenizer_of(minilm.folder)


def ids_of(tokens: list[Tokens]) -> list[list[int]]:
    return [item.ids.tolist() for item in tokens]


# --- What the goldens say


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ids_are_those_of_transformers(case: Case) -> None:
    sentence = case.folder / "sentence_bert_config.json"
    lower = sentence.is_file() and json.loads(sentence.read_text()).get("do_lower_case", False)
    tokenizer = tokenizer_of(case.folder, case.max_seq_length, lower_case=lower)
    tokens = tokenizer.encode_now(list(case.texts), EncodeOptions(prompt=case.prompt or None))
    assert ids_of(tokens) == [ids.tolist() for ids in case.ids]
    assert any(len(ids) == case.max_seq_length for ids in case.ids), "no text was long enough to be cut"


def test_ids_of_the_real_model_are_those_of_transformers(minilm: Checkpoint) -> None:
    reference = load_minilm()
    tokens = tokenizer_of(minilm.folder, 256).encode_now(list(reference.texts), PLAIN)
    assert ids_of(tokens) == [ids.tolist() for ids in reference.ids]


# --- Truncation


@cache
def library_of(folder: Path, max_len: int, side: str) -> tokenizers.Tokenizer:
    """The library's tokenizer, which truncates texts itself."""
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_padding()
    library.enable_truncation(max_len, direction=side)
    return library


def cut_by_the_library(folder: Path, text: str | Pair, max_len: int, side: str) -> tuple[list[int], list[int]]:
    """(ids, type ids) as `tokenizers` truncates itself."""
    library = library_of(folder, max_len, side)
    encoding = library.encode(*text) if isinstance(text, Pair) else library.encode(text)
    return encoding.ids, encoding.type_ids


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("max_len", [2, 3, 17, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_cut_as_tokenizers_cuts_it(kind: str, max_len: int, side: str) -> None:
    folder = FOLDERS[kind]
    tokenizer = tokenizer_of(folder, max_len)
    for text in mixed_texts()[::10]:
        (tokens,) = tokenizer.encode_now([text], EncodeOptions(side=SIDES[side]))
        assert (tokens.ids.tolist(), tokens.type_ids.tolist()) == cut_by_the_library(folder, text, max_len, side)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("max_len", [4, 17, 18, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_cut_as_tokenizers_cuts_it(kind: str, max_len: int, side: str) -> None:
    folder = FOLDERS[kind]
    tokenizer = tokenizer_of(folder, max_len)
    texts = mixed_texts()
    for pair in map(Pair, texts[::18], texts[1::18]):
        (tokens,) = tokenizer.encode_now([pair], EncodeOptions(side=SIDES[side]))
        assert (tokens.ids.tolist(), tokens.type_ids.tolist()) == cut_by_the_library(folder, pair, max_len, side)


@pytest.mark.parametrize("kind", KINDS)
def test_many_pairs_and_texts_are_encoded_as_each_alone(kind: str) -> None:
    tokenizer = tokenizer_of(FOLDERS[kind])
    inputs: list[Text] = ["one", Pair("two", "three four"), "two", Pair("three", "two")]
    assert ids_of(tokenizer.encode_now(inputs, PLAIN)) == [
        ids_of(tokenizer.encode_now([text], PLAIN))[0] for text in inputs
    ]


@pytest.mark.parametrize("side", SIDES)
def test_a_truncated_text_keeps_its_special_tokens_and_the_requested_side(minilm: Checkpoint, side: str) -> None:
    text = " ".join(f"w{number}" for number in range(100))
    (whole,) = tokenizer_of(minilm.folder, 512).encode_now([text], PLAIN)
    (cut,) = tokenizer_of(minilm.folder, 10).encode_now([text], EncodeOptions(side=SIDES[side]))
    inner = whole.ids[1:-1]
    kept = inner[:8] if side == "right" else inner[-8:]
    assert cut.ids.tolist() == [whole.ids[0], *kept, whole.ids[-1]]


def test_a_text_that_is_too_long_is_refused_where_it_may_not_be_cut(minilm: Checkpoint) -> None:
    tokenizer = tokenizer_of(minilm.folder, 4)
    with pytest.raises(ValidationError, match=r"less than 4 tokens\. Given: 5") as refusal:
        tokenizer.encode_now(["fits", "one two three"], REFUSE)
    assert refusal.value.param == "inputs"
    assert len(tokenizer.encode_now(["one two"], REFUSE)[0]) == 4  # exactly as long as may be


@pytest.mark.parametrize("text", ["one two three four", [5, 6, 7, 8, 9, 10], Pair("one two", "three four")])
def test_a_text_over_the_requests_own_limit_is_refused_with_this_limit(minilm: Checkpoint, text: Text) -> None:
    options = EncodeOptions(truncate=False, max_tokens=5)
    with pytest.raises(ValidationError, match=r"less than 5 tokens\. Given: [67];"):
        tokenizer_of(minilm.folder, 512).encode_now([text], options)


@pytest.mark.parametrize("side", SIDES)
def test_a_text_of_megabytes_is_cut_before_it_is_tokenized_and_alike(minilm: Checkpoint, side: str) -> None:
    tokenizer, words = tokenizer_of(minilm.folder, 16), [f"word{index}" for index in range(200)]
    text = " ".join(words * 20)  # far over 250 characters a token
    how = EncodeOptions(side=SIDES[side])
    few = " ".join(words[:40] if side == "right" else words[-40:])
    assert ids_of(tokenizer.encode_now([text], how)) == ids_of(tokenizer.encode_now([few], how))
    assert ids_of(tokenizer.encode_now([Pair("a", text)], how)) == ids_of(tokenizer.encode_now([Pair("a", few)], how))
    with pytest.raises(ValidationError, match="characters"):
        tokenizer.encode_now([text], REFUSE)


def test_ids_that_the_model_has_no_row_for_are_refused(minilm: Checkpoint) -> None:
    tokenizer = TextTokenizer(minilm.folder / "tokenizer.json", max_seq_len=16, vocab_size=2000)
    with pytest.raises(ValidationError, match="not in the vocabulary"):
        tokenizer.encode_now(["hello"], PLAIN)


def test_a_limit_written_into_the_tokenizer_does_not_count() -> None:
    folder = FOLDERS["bert-cls-normalize"]  # cuts and pads to 20
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"]["max_length"] == 20
    short, long = tokenizer_of(folder, 48).encode_now(["a", "a " * 100], PLAIN)
    assert (len(short), len(long)) == (3, 48)


# --- Token ids


def test_token_ids_are_used_as_they_are(bert: TextTokenizer) -> None:
    tokens = bert.encode_now([[5, 4, 3], [0], [bert.vocab_size - 1]], EncodeOptions(prompt="ignored for ids: "))
    assert ids_of(tokens) == [[5, 4, 3], [0], [bert.vocab_size - 1]]
    assert all(item.ids.dtype == np.int32 and not item.type_ids.any() for item in tokens)


def test_texts_and_token_ids_may_be_mixed(bert: TextTokenizer) -> None:
    mixed: list[Text] = ["hello", [7, 8], "world"]
    assert ids_of(bert.encode_now(mixed, PLAIN)) == [
        *ids_of(bert.encode_now(["hello"], PLAIN)),
        [7, 8],
        *ids_of(bert.encode_now(["world"], PLAIN)),
    ]


@pytest.mark.parametrize(("side", "kept"), [("right", [0, 1, 2]), ("left", [2, 3, 4])])
def test_token_ids_are_truncated_at_the_requested_side(minilm: Checkpoint, side: str, kept: list[int]) -> None:
    tokenizer = tokenizer_of(minilm.folder, 3)
    assert ids_of(tokenizer.encode_now([[0, 1, 2, 3, 4]], EncodeOptions(side=SIDES[side]))) == [kept]
    with pytest.raises(ValidationError, match="Given: 5"):
        tokenizer.encode_now([[0, 1, 2, 3, 4]], REFUSE)


@pytest.mark.parametrize("bad", [-1, 30_522, 2**31, -(2**40)])
def test_an_id_outside_the_vocabulary_is_refused(bert: TextTokenizer, bad: int) -> None:
    with pytest.raises(ValidationError, match=f"token id {bad} is not in the vocabulary \\(0 to 30521\\)"):
        bert.encode_now([[1, bad, 2]], PLAIN)


# --- Refusals


@pytest.mark.parametrize("texts", [[], [""], ["a", ""], [[]], ["a", []], [Pair("", "")]], ids=str)
def test_what_is_empty_is_refused(bert: TextTokenizer, texts: list[Text]) -> None:
    with pytest.raises(EmptyInputError):
        bert.encode_now(texts, PLAIN)


@pytest.mark.parametrize("pair", [Pair("a", ""), Pair("", "a")], ids=str)
def test_a_pair_is_empty_only_if_both_texts_are(bert: TextTokenizer, pair: Pair) -> None:
    (tokens,) = bert.encode_now([pair], EncodeOptions())
    assert len(tokens) == 4  # [CLS] a [SEP] [SEP], or [CLS] [SEP] a [SEP]


def test_an_empty_text_is_refused_also_behind_a_prompt(bert: TextTokenizer) -> None:
    with pytest.raises(EmptyInputError):
        bert.encode_now([""], EncodeOptions(prompt="query: "))


def test_white_space_is_a_text_of_special_tokens(bert: TextTokenizer) -> None:
    assert ids_of(bert.encode_now([" \n"], PLAIN)) == [[101, 102]]


@pytest.mark.parametrize("texts", [["\ud800"], ["fine", "\ud800"]], ids=["alone", "in a list"])
def test_what_the_library_refuses_is_a_tokenizer_error(bert: TextTokenizer, texts: list[Text]) -> None:
    with pytest.raises(TokenizerError):
        bert.encode_now(texts, PLAIN)


# --- The same for one and for many, here and in the pool


def test_many_texts_are_encoded_as_each_alone(bert: TextTokenizer) -> None:
    texts = mixed_texts()
    together = bert.encode_now(texts, PLAIN)
    assert ids_of(together) == [ids_of(bert.encode_now([text], PLAIN))[0] for text in texts]
    assert all(item.ids.shape == item.type_ids.shape for item in together)


def test_encodings_are_freed_one_by_one(bert: TextTokenizer) -> None:
    """To free 64 long ones at once stopped all threads for 20 ms."""
    encodings = bert._encode(["one", "two", "three"], PLAIN, with_spans=False)
    first, _ = next(encodings), next(encodings)
    assert sys.getrefcount(first) == 2, "of this test and of the call"


async def test_an_error_in_the_pool_is_the_callers(bert: TextTokenizer) -> None:
    with pytest.raises(EmptyInputError):
        await bert.tokenize(["word " * INLINE_CHARS, ""], PLAIN)


async def test_many_requests_at_once_are_not_mixed_up(bert: TextTokenizer) -> None:
    requests = [[f"text {index} " * (1 + 50 * (index % 20))] for index in range(60)]
    together = await asyncio.gather(*(bert.tokenize(list[Text](texts), PLAIN) for texts in requests))
    assert [ids_of(tokens) for tokens, _ in together] == [
        ids_of(bert.encode_now(list[Text](texts), PLAIN)) for texts in requests
    ]


# --- Prompts and case


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_goes_before_every_text(kind: str) -> None:
    tokenizer = tokenizer_of(FOLDERS[kind])
    prompted = tokenizer.encode_now(["one", "two"], EncodeOptions(prompt="query: "))
    assert ids_of(prompted) == ids_of(tokenizer.encode_now(["query: one", "query: two"], PLAIN))


# What sentence-transformers 6.2 counts (`Transformer._get_prompt_length`) of "query: ", "x </s>" and "x [SEP]".
SKIPS = {KINDS[0]: (6, 6, 3), KINDS[1]: (8, 5, 9), KINDS[2]: (7, 4, 9), KINDS[3]: (6, 3, 6)}


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_leaves_out_the_tokens_that_sentence_transformers_leaves_out(kind: str) -> None:
    tokenizer = tokenizer_of(FOLDERS[kind])
    for prompt, skip in zip(("query: ", "x </s>", "x [SEP]"), SKIPS[kind], strict=True):
        (tokens,) = tokenizer.encode_now(["one two three four"], EncodeOptions(prompt=prompt, pool_prompt=False))
        assert tokens.skip == skip
        assert tokenizer.encode_now(["one"], EncodeOptions(prompt=prompt))[0].skip == 0
    assert tokenizer.encode_now(["one"], EncodeOptions(pool_prompt=False))[0].skip == 0


def test_what_has_no_prompt_before_it_is_pooled_whole(bert: TextTokenizer) -> None:
    inputs: list[Text] = [Pair("one", "two"), Templated("one two", 4, 7), [5, 6]]
    how = EncodeOptions(prompt="query: ", pool_prompt=False)
    assert [tokens.skip for tokens in bert.encode_now(inputs, how)] == [0, 0, 0]
    assert [tokens.skip for tokens in bert.encode_now([inputs[0]], how)] == [0]


@pytest.mark.parametrize(("side", "skip"), [("right", 7), ("left", 1)])
def test_pooling_uses_at_least_one_token_and_excludes_the_prompt_that_truncation_left(
    minilm: Checkpoint, side: str, skip: int
) -> None:
    how = EncodeOptions(side=SIDES[side], prompt="a b c d e f g h i j ", pool_prompt=False)
    (tokens,) = tokenizer_of(minilm.folder, 8).encode_now(["one " * 20], how)
    assert (len(tokens), tokens.skip) == (8, skip)


def test_an_empty_prompt_is_none(bert: TextTokenizer) -> None:
    assert ids_of(bert.encode_now(["one"], EncodeOptions(prompt=""))) == ids_of(bert.encode_now(["one"], PLAIN))


@pytest.mark.parametrize("kind", ["bert-mean-cls-list", "roberta-mean-normalize", "xlmr-cls-f16-sharded"])
def test_lower_case_lowers_before_the_tokenizer_looks(kind: str) -> None:
    folder = FOLDERS[kind]  # a normalizer that keeps case, none, and one of another kind
    plain, lower = tokenizer_of(folder), tokenizer_of(folder, lower_case=True)
    text = "The QUICK Brown ÄÖ \u210b"  # whose last is a capital only once NFKC has been at it
    assert ids_of(lower.encode_now([text], PLAIN)) == ids_of(plain.encode_now([text.lower()], PLAIN))
    assert ids_of(plain.encode_now([text], PLAIN)) != ids_of(plain.encode_now([text.lower()], PLAIN))


# --- Spans and decoding


def test_spans_name_each_tokens_part_of_the_text(bert: TextTokenizer) -> None:
    text = "Grüße, wörld 👋🏽!"
    spans = list(bert.spans(text, add_special_tokens=True))
    assert [span[0] for span in spans] == bert.encode_now([text], PLAIN)[0].ids.tolist()
    assert spans[0] == (101, "[CLS]", True, None, None)
    assert spans[-1] == (102, "[SEP]", True, None, None)
    for _, part, special, start, stop in spans[1:-1]:
        assert not special
        assert start is not None
        assert part == text[start:stop] != ""
    assert list(bert.spans(text, add_special_tokens=False)) == spans[1:-1]


def test_a_text_that_the_library_refuses_is_a_tokenizer_error_for_spans_too(bert: TextTokenizer) -> None:
    with pytest.raises(TokenizerError):
        list(bert.spans("\ud800", add_special_tokens=True))


def test_ids_decode_to_their_text(bert: TextTokenizer) -> None:
    ids = bert.encode_now(["hello world"], PLAIN)[0].ids.tolist()
    assert bert.decode(ids) == "hello world"
    assert bert.decode(ids, skip_special_tokens=False) == "[CLS] hello world [SEP]"
    assert bert.decode([]) == ""
    with pytest.raises(ValidationError, match="token id 99999"):
        bert.decode([99_999])


# --- The file


def test_a_missing_tokenizer_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; save .*save_pretrained"):
        TextTokenizer(tmp_path / "tokenizer.json", max_seq_len=8, vocab_size=8)


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}'])
def test_a_malformed_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer that `tokenizers` .* reads"):
        TextTokenizer(path, max_seq_len=8, vocab_size=8)
