"""The threads that tokenize, on which requests take turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import NamedTuple, TypeAlias

import numpy as np

from bei_core.errors import DeadlineExceededError, RequestError, StartError, UnhealthyError
from bei_core.tasks import EncodeOptions, Pair, Templated, Text, Tokens, num_characters
from bei_core.text.refusals import MAX_CHUNKS, too_many_chunks
from bei_core.text.truncation import Indices

# A request with more characters is tokenized in pieces of so many, so that a small request waits for one piece of each
# large one: a rerank request of 40 KB has up to 32,000,000 characters, which take 10 s. A piece takes about 40 ms.
_PIECE_CHARS = 131_072


class Tokenized(NamedTuple):
    """The tokens of a request's texts, in order."""

    tokens: list[Tokens]
    owners: Indices | None  # [chunks], ascending: the text of each chunk; None: one entry per text


Encode: TypeAlias = Callable[[Sequence[Text], EncodeOptions], tuple[list[Tokens], Indices | None]]


def start_all(pool: ThreadPoolExecutor, num_threads: int) -> None:
    """Starts all threads of a pool: under a limit of threads, none may start later. Raises StartError."""
    all_run = Barrier(num_threads + 1)
    try:
        for _ in range(num_threads):
            pool.submit(all_run.wait)
    except RuntimeError as fault:
        all_run.abort()  # those that run would wait for ever, and the process with them
        raise StartError(f"{fault}; raise the limit of threads and processes of this user or container") from fault
    all_run.wait()


class Workers:
    """Threads that tokenize. A request has one piece of its texts in their line at a time."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="bei-tokenize")
        self._num_threads = num_threads
        self._is_closed = False

    def start(self, encode_one: Callable[[], object]) -> None:
        """Starts all threads, for a server: under a limit of threads, none may start when it is needed."""
        with suppress(RequestError):
            encode_one()
        start_all(self._pool, self._num_threads)

    async def tokenize(
        self, encode: Encode, texts: Sequence[Text], options: EncodeOptions, deadline: float | None
    ) -> Tokenized:
        """Returns what `encode` returns for all texts; it is called on a thread, with some of them at a time.

        Raises the errors of `encode`, ValidationError for too many chunks, UnhealthyError after `close`, and
        DeadlineExceededError at `deadline`, in seconds on the clock of time.monotonic. Then the texts that are left are
        not tokenized.
        """
        loop, tokens, owners, count = asyncio.get_running_loop(), list[Tokens](), list[Indices](), 0

        def work(piece: Sequence[Text]) -> tuple[list[Tokens], Indices | None]:
            self._check_open()  # again, because the piece has waited for the thread
            return encode(piece, options)

        for piece in _pieces(texts):
            self._check_open()
            future = loop.run_in_executor(self._pool, work, piece)
            try:
                found, of_texts = await (
                    future if deadline is None else asyncio.wait_for(future, deadline - time.monotonic())
                )
            except asyncio.TimeoutError:
                message = "the request's deadline passed while its texts were tokenized"
                raise DeadlineExceededError(message) from None
            tokens += found
            if of_texts is not None:
                owners.append(of_texts + count)
            count += len(piece)
            if len(tokens) - count > MAX_CHUNKS:
                raise too_many_chunks()
        return Tokenized(tokens, np.concatenate(owners) if owners else None)

    def close(self) -> None:
        """Ends the threads after the pieces that they tokenize now. Requests with other pieces get UnhealthyError."""
        self._is_closed = True
        self._pool.shutdown(wait=False)  # `cancel_futures` would look as if the client had left

    def _check_open(self) -> None:
        """Raises UnhealthyError after `close`."""
        if self._is_closed:
            raise UnhealthyError("the server is shutting down")


def _size(text: Text) -> int:
    """Returns how much there is to tokenize: the number of characters or of token ids."""
    return num_characters(text) if isinstance(text, Pair | Templated) else len(text)


def _pieces(texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """Yields consecutive texts of _PIECE_CHARS characters at most, but at least one text; no texts are one piece."""
    start = size = 0
    for stop, text in enumerate(texts):
        size += (added := _size(text))
        if size > _PIECE_CHARS and stop > start:
            yield texts[start:stop]
            start, size = stop, added
    yield texts[start:]
