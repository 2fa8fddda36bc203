"""Long texts: only the part that decides the kept tokens is tokenized, and few texts at a time."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from bei_core.tasks import EncodeOptions, TruncationSide
from bei_core.text import library
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import GOLDEN

DATA = Path(__file__).resolve().parents[2] / "data"
FILES = sorted(
    [
        *(DATA / "tokenizers").rglob("tokenizer.json"),
        *(DATA / "published_tokenizers").rglob("tokenizer.json"),
        *{path.read_bytes(): path for path in sorted(GOLDEN.glob("*/tokenizer.json"))}.values(),  # many have the same
    ]
)
WORDS = [
    "hello",
    "unbelievably",
    "中文字符",
    "!",
    "!!!",
    "naïve",
    "<mask>",
    "[MASK]",
    "</s>",
    "  ",
    "\n\n",
    "don't",
    "x" * 300,
    "٣",
    "😀",
    "e\u0301",
    "123,456.7",
    "_",
    "\t",
]


def open_(path: Path, *, max_seq_len: int = 16) -> TextTokenizer:
    return TextTokenizer(path, max_seq_len=max_seq_len, vocab_size=1_000_000)


@pytest.mark.parametrize("path", FILES, ids=[str(path.parent.name) for path in FILES])
@pytest.mark.parametrize("prompt", [None, "query: "])
@pytest.mark.parametrize("num_random", [3, pytest.param(8, marks=pytest.mark.long)])
def test_the_tokens_are_those_of_the_whole_text(
    monkeypatch: pytest.MonkeyPatch, path: Path, prompt: str | None, num_random: int
) -> None:
    random_ = random.Random(1)
    texts = [
        "".join(random_.choice(WORDS) + random_.choice(["", " "]) for _ in range(random_.choice([30, 150])))
        for _ in range(num_random)
    ]
    texts += ["!" * 700, "a" * 700, " " * 300 + "b " * 500]
    tokenizer = open_(path)
    for spans in (False, True):
        options = EncodeOptions(prompt=prompt, spans=spans)
        found = tokenizer.encode_now(texts, options)
        with monkeypatch.context() as patched:
            patched.setattr(tokenizer, "_likely_chars", 10**9)
            wanted = tokenizer.encode_now(texts, options)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            assert one.spans == other.spans


def test_no_more_is_tokenized_than_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, lengths = open_(GOLDEN / "bert-cls-normalize" / "tokenizer.json"), list[int]()
    encode = tokenizer._encode

    def noted(texts: list[str], *options: EncodeOptions, **spans: bool) -> object:
        lengths.extend(map(len, texts))
        return encode(texts, *options, **spans)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenizer, "_encode", noted)
    tokenizer.encode_now(["!" * 62_000] * 3, EncodeOptions())
    assert lengths == [256] * 3
    lengths.clear()
    tokenizer.encode_now(["!" * 62_000], EncodeOptions(side=TruncationSide.LEFT))
    assert lengths == [4000]


def test_a_call_has_few_texts_and_characters() -> None:
    texts: list[str] = ["a" * 100_000] * 5 + ["b"] * 100
    calls = list(library.calls(texts))
    assert [text for call in calls for text in call] == texts
    assert [len(call) for call in calls] == [2, 2, 64, 37]
    assert list(library.calls(["c" * 10**6])) == [["c" * 10**6]]
