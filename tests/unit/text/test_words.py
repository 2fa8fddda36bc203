"""Remembered words give the ids that the library gives for the whole text."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.pre_tokenizers import WhitespaceSplit

from bei_core.errors import EmptyInputError
from bei_core.tasks import EncodeOptions, Pair, Text
from bei_core.text import words
from bei_core.text.files import open_tokenizer
from bei_core.text.published import canonical_tokenizer
from bei_core.text.tokenizer import TextTokenizer
from bei_core.text.words import MARKS, IdsOfWords, Words
from tests.conftest import MINILM
from tests.golden.cases import CASES
from tests.golden.test_tokenizers import NAMES, unpack
from tests.golden.texts import mixed_texts

PLAIN = EncodeOptions()

# Words that a normalizer or an added token could join with their neighbours.
AWKWARD: tuple[str, ...] = (
    *(
        "",
        "\t",
        "\n",
        "a\nb",
        "\x00",
        "\x0b",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u200b",
        "\u2028",
        "\ufeff",
        "\u0301b",
        "a\u0301",
    ),
    *(
        "É",
        "İ",
        "ß",
        "ΑΣ",
        "ǅ",
        "①",
        "ﬁ",
        "\u037e",
        "\u1fef",
        "中",
        "中文",
        "日本語",
        "한국어",
        "👩‍👩‍👧",
        "x" * 33,
        "y" * 120,
    ),
    *(
        "[MASK]",
        "[mask]",
        "[CLS]",
        "x[SEP]y",
        "[UNK]",
        "<s>",
        "</s>",
        "<mask>",
        *MARKS,
        "a|b",
        "1,000",
        "3.14",
        "don't",
        "1234567",
        "Zq9xW",
        "A" * 31 + "1",
    ),
)
COMMON: tuple[str, ...] = tuple({word for text in mixed_texts() for word in text.split()})
RANGES = ((0x21, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x20000))


def random_text(random_: random.Random) -> str:
    """Common, awkward and random words, with one or two spaces between them."""

    def word() -> str:
        low, high = random_.choice(RANGES)
        new = "".join(chr(random_.randrange(low, high)) for _ in range(random_.randrange(1, 6)))
        return random_.choice(random_.choice((COMMON, AWKWARD, (new,))))

    return random_.choice((" ", " ", "  ")).join(word() for _ in range(random_.randrange(1, 25))) or "."


def opened(path: Path, max_seq_len: int = 64) -> TextTokenizer:
    return TextTokenizer(path, max_seq_len=max_seq_len, vocab_size=10**6)


def opened_by_library(path: Path) -> Tokenizer:
    tokenizer = open_tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids_of(tokenizer: TextTokenizer, text: Text, options: EncodeOptions) -> tuple[list[int], list[int]] | str:
    try:
        (tokens,) = tokenizer.encode_now([text], options)
    except EmptyInputError as error:
        return str(error)
    return tokens.ids.tolist(), tokens.type_ids.tolist()


def assert_same_as_the_library(tokenizer: TextTokenizer, num_texts: int, seed: str) -> None:
    """With spans, the library encodes the whole text."""
    random_ = random.Random(seed)
    for special in (True, False):
        options = EncodeOptions(add_special_tokens=special)
        for _ in range(num_texts):
            text, other = random_text(random_), random_text(random_)
            for each in (text, Pair(text, other)):
                assert ids_of(tokenizer, each, options) == ids_of(tokenizer, each, replace(options, spans=True)), each


def test_ids_are_those_of_the_library(tmp_path: Path) -> None:
    paths = [MINILM / "tokenizer.json", *(case.folder / "tokenizer.json" for case in CASES)]
    for name in NAMES:
        (tmp_path / name).mkdir()
        unpack(name, tmp_path / name)
        canonical_tokenizer(tmp_path / name).write(tmp_path / name / "canonical.json")
        paths.append(tmp_path / name / "canonical.json")
    able = [path for path in paths if path.exists() and Words.of(opened_by_library(path))]
    assert len(able) > 30
    for path in able:
        assert_same_as_the_library(opened(path), 8, str(path.relative_to(path.parents[1])))


def test_a_word_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = opened(MINILM / "tokenizer.json")
    first = ids_of(tokenizer, "a serving engine", PLAIN)

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the words are known")

    monkeypatch.setattr(words, "encode", refuse)
    monkeypatch.setattr("bei_core.text.tokenizer.encode", refuse)
    assert ids_of(tokenizer, "a serving engine", PLAIN) == first
    assert ids_of(tokenizer, Pair("serving", "a engine"), PLAIN) != first


def test_texts_that_do_not_fit_are_truncated_as_a_whole() -> None:
    tokenizer = opened(MINILM / "tokenizer.json", max_seq_len=8)
    for text in ("one two three four five six seven", Pair("one two three", "four five six seven"), "antidis" * 12):
        assert ids_of(tokenizer, text, PLAIN) == ids_of(tokenizer, text, replace(PLAIN, spans=True))
        assert len(ids_of(tokenizer, text, PLAIN)[0]) == 8


@pytest.mark.parametrize("text", ["one two three four five six seven", "word" * 20, "語" * 20])
def test_texts_that_will_be_truncated_and_those_without_spaces_are_not_learned(text: str) -> None:
    tokenizer = opened(MINILM / "tokenizer.json", max_seq_len=6)
    ids_of(tokenizer, text, PLAIN)
    assert tokenizer._words is not None
    assert not tokenizer._words.known


def test_words_of_a_large_request_are_in_memory_a_group_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = opened(MINILM / "tokenizer.json")
    assert tokenizer._words is not None
    learn, counts = tokenizer._words.learn, list[int]()

    def counting(needed: Set[str]) -> IdsOfWords:
        counts.append(len(needed))
        return learn(needed)

    monkeypatch.setattr(tokenizer._words, "learn", counting)
    tokenizer.encode_now([f"word {number}" for number in range(1000)], PLAIN)
    assert max(counts) <= 65


def test_a_word_that_becomes_the_mark_is_tokenized_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MARKS", ";")
    tokenizer = opened(MINILM / "tokenizer.json")
    text = "a Greek question mark \u037e is a semicolon"
    assert ids_of(tokenizer, text, PLAIN) == ids_of(tokenizer, text, replace(PLAIN, spans=True))


def test_new_words_of_letters_and_digits_need_the_model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = opened(MINILM / "tokenizer.json")
    expected = ids_of(tokenizer, "Rows 1234567 and zxqwv9", replace(PLAIN, spans=True))

    def refuse(_: Tokenizer, texts: list[str], **__: object) -> tuple[()]:
        assert not texts, "the model is enough"
        return ()

    monkeypatch.setattr(words, "encode", refuse)
    assert ids_of(tokenizer, "Rows 1234567 and zxqwv9", PLAIN) == expected


@pytest.mark.parametrize("token", ["qq", "QQ", "Q\u0301Q\u0301", AddedToken("qq", single_word=True, normalized=False)])
def test_an_added_token_in_a_word_is_found(tmp_path: Path, token: str | AddedToken) -> None:
    changed = opened_by_library(MINILM / "tokenizer.json")
    changed.add_tokens([token])
    changed.save(str(tmp_path / "tokenizer.json"))
    tokenizer = opened(tmp_path / "tokenizer.json")
    assert tokenizer._words is not None
    text = "xqqx xQQx qq QQ 1qq2"
    assert ids_of(tokenizer, text, PLAIN) == ids_of(tokenizer, text, replace(PLAIN, spans=True))


def test_a_folder_that_lowercases_already_keeps_its_words() -> None:
    tokenizer = TextTokenizer(MINILM / "tokenizer.json", max_seq_len=64, vocab_size=10**6, lower_case=True)
    assert tokenizer._words is not None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_NUM_WORDS", 100)
    found = Words.of(opened_by_library(MINILM / "tokenizer.json"))
    assert found is not None
    for first in range(0, 1000, 30):
        new = [str(number) for number in range(first, first + 30)]
        assert found.learn({*new, "x" * 33}).keys() >= {*new, "x" * 33}
        assert len(found.known) <= 100
        assert "x" * 33 not in found.known
    assert len(found.learn({f"n{number}" for number in range(300)})) == 300
    assert len(found.known) == 100
    assert found.learn({"0", "serving"})["serving"] == np.int32(3529).tobytes()  # "0" was forgotten


def test_several_threads_learn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_NUM_WORDS", 50)  # so that each forgets what the others know
    tokenizer = opened(MINILM / "tokenizer.json")
    texts = [" ".join(random.Random(seed).choices(COMMON, k=20)) for seed in range(400)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: ids_of(tokenizer, text, PLAIN), texts))
    assert found == [ids_of(tokenizer, text, replace(PLAIN, spans=True)) for text in texts]


def test_no_other_character_becomes_a_mark() -> None:
    codes = (code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    others = "".join(each for each in map(chr, codes) if each not in MARKS)
    assert not set(MARKS) & set(BertNormalizer().normalize_str(others))
    assert not set(MARKS) & set(unicodedata.normalize("NFD", others))


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.add_tokens(["two words"]),
        lambda tokenizer: tokenizer.add_tokens(["中"]),  # normalized, it has spaces around
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", WhitespaceSplit()),
        lambda tokenizer: setattr(tokenizer, "normalizer", NFC()),
    ],
)
def test_tokenizers_whose_words_depend_on_others_have_none(change: Callable[[Tokenizer], object]) -> None:
    tokenizer = opened_by_library(MINILM / "tokenizer.json")
    assert Words.of(tokenizer) is not None
    change(tokenizer)
    assert Words.of(tokenizer) is None
