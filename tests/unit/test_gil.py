"""Threads that decode and tokenize let the event loop have the GIL, however large the request is.

A thread that waits for the GIL asks for it after a whole wait (2.5 ms), and begins this wait again whenever the GIL was
free, even if another thread took it first. So a loop that releases it for moments keeps it for as long as it runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from bei_core.http.bodies import _Json
from bei_core.tasks import EncodeOptions
from bei_core.text.tokenizer import TextTokenizer
from tests.conftest import MINILM

IDS = [[1012] * 1000] * 1024


def starved_share(work: Callable[[], object]) -> float:
    """The share of the time of `work`, on a thread, in which this thread waits for more than 4 switch intervals."""
    before, interval, waits = sys.getswitchinterval(), 0.0025, list[float]()
    sys.setswitchinterval(interval)  # as the server does
    try:
        with ThreadPoolExecutor(1) as pool:
            future, start = pool.submit(work), time.perf_counter()
            while not future.done():
                began = time.perf_counter()
                time.sleep(0.0005)
                waits.append(time.perf_counter() - began)
            took = time.perf_counter() - start
    finally:
        sys.setswitchinterval(before)
    return sum(wait for wait in waits if wait > 4 * interval) / took


def test_a_body_in_pieces() -> None:
    found = [_Json(msgspec.json.encode({"inputs": IDS})) for _ in range(8)]
    assert starved_share(lambda: [text.value() for text in found]) < 0.5


def test_lists_of_ids_that_are_tokenized() -> None:
    tokenizer = TextTokenizer(MINILM / "tokenizer.json", max_seq_len=256, vocab_size=30_522)
    assert starved_share(lambda: tokenizer.encode_now(IDS * 4, EncodeOptions())) < 0.5
