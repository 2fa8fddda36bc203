"""Short texts are tokenized on the event loop, long ones and those of a busy turn on the tokenizer's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.tasks import EncodeOptions, Text, Tokens
from bei_core.text import tokenizer as tokenizer_module
from bei_core.text.tokenizer import INLINE_CHARS, TextTokenizer
from tests.unit.text.test_tokenizer import PLAIN, ids_of, tokenizer_of


@pytest.fixture
def bert(minilm: Checkpoint) -> TextTokenizer:
    return tokenizer_of(minilm.folder)


async def test_long_requests_are_encoded_off_the_event_loop_and_alike(
    bert: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def watched(function: Callable[..., list[Tokens]]) -> Callable[..., list[Tokens]]:
        def run(texts: list[Text], how: EncodeOptions) -> list[Tokens]:
            threads.append(threading.current_thread() is threading.main_thread())
            return function(texts, how)

        return run

    monkeypatch.setattr(bert, "encode_now", watched(bert.encode_now))
    short, long = ["word"], ["word " * 100] * (INLINE_CHARS // 500 + 1)
    assert ids_of((await bert.tokenize(short, PLAIN)).tokens) == ids_of(bert.encode_now(short, PLAIN))
    threads.clear()
    await bert.tokenize(short, PLAIN)
    tokens, _ = await bert.tokenize(long, PLAIN)
    assert threads == [True, False]
    assert ids_of(tokens) == ids_of(bert.encode_now(long, PLAIN))


@pytest.mark.parametrize("options", [PLAIN, EncodeOptions(chunk=True), EncodeOptions(chunk_tokens=9)])
async def test_many_short_requests_of_one_turn_are_encoded_off_the_event_loop(
    bert: TextTokenizer, monkeypatch: pytest.MonkeyPatch, options: EncodeOptions
) -> None:
    """As `/vertex` sends them: they held up the event loop for 1.6 s."""
    threads = list[bool]()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(texts: list[Text], how: EncodeOptions) -> Any:  # noqa: ANN401 - the result of `function`
            threads.append(threading.current_thread() is threading.main_thread())
            return function(texts, how)

        return run

    for name in ("encode_now", "chunk_now"):
        monkeypatch.setattr(bert, name, watched(getattr(bert, name)))
    text = "word " * (INLINE_CHARS // 5)
    await asyncio.gather(*(bert.tokenize(list[Text]([text]), options) for _ in range(20)))
    assert threads.count(True) * len(text) <= INLINE_CHARS
    assert False in threads
    threads.clear()
    await bert.tokenize([text], options)
    assert threads == [True]


@pytest.mark.parametrize(("seconds", "num_inline"), [(0.00001, 100), (0.001, 6)])
async def test_requests_of_one_turn_are_encoded_on_the_event_loop_for_6_ms(
    bert: TextTokenizer, monkeypatch: pytest.MonkeyPatch, seconds: float, num_inline: int
) -> None:
    """Under overload 90 requests are accepted in one turn: by their characters alone, 60 of them changed the thread."""
    threads, encode, now = list[bool](), bert.encode_now, 0.0

    def encode_now(texts: list[Text], how: EncodeOptions) -> list[Tokens]:
        nonlocal now
        threads.append(threading.current_thread() is threading.main_thread())
        now += seconds * threads[-1]
        return encode(texts, how)

    monkeypatch.setattr(bert, "encode_now", encode_now)
    monkeypatch.setattr(tokenizer_module, "time", SimpleNamespace(perf_counter=lambda: now))
    for _ in range(2):  # in the second turn as in the first
        threads.clear()
        await asyncio.gather(*(bert.tokenize(list[Text](["word " * 20]), PLAIN) for _ in range(100)))
        assert (threads.count(True), len(threads)) == (num_inline, 100)
