"""Short texts are tokenized on the event loop, long ones and those of a busy turn on the tokenizer's thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.errors import DeadlineExceededError, StartError, UnhealthyError, ValidationError
from bei_core.tasks import EncodeOptions, Text, Tokens
from bei_core.text import tokenizer as tokenizer_module
from bei_core.text import workers
from bei_core.text.tokenizer import INLINE_CHARS, TextTokenizer
from bei_core.text.workers import start_all
from tests.fakes import SAFETY_S
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
    await asyncio.sleep(0)  # in a new turn of the event loop, which has time left
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


def held(bert: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Text], threading.Event]:
    """The first text of each call of `encode_now`, and an event: until it is set, no call returns."""
    called, going_on, encode = list[Text](), threading.Event(), bert.encode_now

    def encode_now(texts: list[Text], how: EncodeOptions) -> list[Tokens]:
        called.append(texts[0])
        assert going_on.wait(SAFETY_S)
        return encode(texts, how)

    monkeypatch.setattr(bert, "encode_now", encode_now)
    return called, going_on


async def test_other_requests_are_tokenized_between_the_pieces_of_a_large_one(
    bert: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rerank request of 40 KB, whose query is tokenized with each document, held up all others for 10 s."""
    monkeypatch.setattr(workers, "_PIECE_CHARS", INLINE_CHARS)
    texts: list[Text] = [letter * INLINE_CHARS for letter in "abcdef"]
    alone = bert.encode_now(texts, PLAIN)
    called, going_on = held(bert, monkeypatch)
    large = asyncio.create_task(bert.tokenize(texts, PLAIN))
    await asyncio.sleep(0)
    small = asyncio.create_task(bert.tokenize(["z" * (INLINE_CHARS + 1)], PLAIN))
    await asyncio.sleep(0)
    going_on.set()
    await small
    assert ids_of((await large).tokens) == ids_of(alone)
    assert [str(text)[0] for text in called] == ["a", "z", "b", "c", "d", "e", "f"]


async def test_the_deadline_counts_while_a_request_waits_for_its_tokens(
    bert: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_PIECE_CHARS", INLINE_CHARS)
    called, going_on = held(bert, monkeypatch)
    large = asyncio.create_task(bert.tokenize(["a" * (INLINE_CHARS + 1)] * 3, PLAIN, time.monotonic() + 0.05))
    other = asyncio.create_task(bert.tokenize(["z" * (INLINE_CHARS + 1)] * 3, PLAIN, time.monotonic() + 0.05))
    for task in (large, other):
        with pytest.raises(DeadlineExceededError, match="while its texts were tokenized"):
            await asyncio.wait_for(task, SAFETY_S)
    assert not going_on.is_set()
    going_on.set()
    await bert.tokenize(["y" * (INLINE_CHARS + 1)], PLAIN)
    assert [str(text)[0] for text in called] == ["a", "y"], "the rest is left out"


async def test_chunks_of_pieces_are_those_of_the_whole_request(
    bert: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, texts = EncodeOptions(chunk=True, chunk_tokens=9), ["a b c " * count for count in range(1, 60)]
    chunks, owners = bert.chunk_now(texts, options)
    monkeypatch.setattr(workers, "_PIECE_CHARS", 1000)
    found = await bert.tokenize(texts, options)
    assert ids_of(found.tokens) == ids_of(chunks)
    assert found.owners is not None
    assert found.owners.tolist() == owners.tolist()
    monkeypatch.setattr(workers, "MAX_CHUNKS", len(chunks) - len(texts) - 1)
    with pytest.raises(ValidationError, match="chunks"):
        await bert.tokenize(texts, options)


async def test_requests_that_wait_for_the_thread_when_it_is_closed_are_told_so(
    minilm: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Ray the event loop runs on: a CancelledError there ends the request without a reply."""
    bert = tokenizer_of.__wrapped__(minilm.folder)  # one of its own, because it is closed
    called, going_on = held(bert, monkeypatch)
    texts: list[Text] = ["a" * (INLINE_CHARS + 1)]
    running, waiting, with_deadline = (
        asyncio.create_task(bert.tokenize(texts, PLAIN, deadline))
        for deadline in (None, None, time.monotonic() + SAFETY_S)
    )
    while not called:
        await asyncio.sleep(0)
    bert.close()
    going_on.set()
    assert len((await asyncio.wait_for(running, SAFETY_S)).tokens) == 1
    for task in (waiting, with_deadline):
        with pytest.raises(UnhealthyError, match="shutting down"):
            await asyncio.wait_for(task, SAFETY_S)
    assert len(called) == 1, "the texts of the others are not tokenized"


def test_a_server_that_cannot_start_its_threads_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hung for ever, as the threads that ran waited for the others."""
    start, started = threading.Thread.start, list[threading.Thread]()

    def refuse_the_second(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    pool = ThreadPoolExecutor(3)
    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(StartError, match="can't start new thread; raise the limit of threads"):
        start_all(pool, 3)
    started[0].join(0)
    pool.shutdown()
    assert not started[0].is_alive()
