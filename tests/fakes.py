"""A fake engine with the real contract, and helpers for tests of the code that calls engines."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest, read_manifest, seal
from bei_core.serving.runner import Runner, Ticket
from bei_core.tasks import Rows, Tokens

# How long a test waits for an event that must come before it fails; nothing is ever expected to take that long.
SAFETY_S = 60.0

WIDTH = 8

ResultT = TypeVar("ResultT")


ENGINE_FILES = {"model.bin": b"\x00weights" * 1000, "spec.json": b"{}", "deep/er/tokenizer.json": b"tokens"}


def write_engine(folder: Path, artifact: str = "a" * 32, **changed: object) -> Manifest:
    """Write an engine folder with valid files that no runtime can load; returns its manifest."""
    for name, content in ENGINE_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    made = Manifest(engine="fake", precision="f32", source="owner/name", revision="0" * 40, artifact=artifact)
    seal(folder, msgspec.structs.replace(made, **changed))
    return read_manifest(folder)


class EngineFaultError(Exception):
    """The error of the fake runtime."""


class FakeEngine:
    """Gives each sequence a digest of its own tokens, so that a row in the wrong place is a wrong row.

    A sequence that holds an id of `raises_on` fails the batch it is in, one that holds an id of `nan_on` gets NaN, the
    next `num_failures` batches fail whatever they hold, and between `hold` and `release` no batch comes back.
    """

    def __init__(
        self,
        *,
        max_seq_len: int = 512,
        raises_on: Iterable[int] = (),
        nan_on: Iterable[int] = (),
        num_failures: int = 0,
    ) -> None:
        self.info = EngineInfo("fake", "cpu", "f32", WIDTH, max_seq_len, batch_tokens=max_seq_len, token_width=2)
        self.raises_on = frozenset(raises_on)
        self.nan_on = frozenset(nan_on)
        self.num_failures = num_failures
        self.batches: list[list[list[int]]] = []  # of each call, the ids of each sequence
        self.entered = threading.Semaphore(0)  # once a call
        self.is_closed = False
        self._open = threading.Event()
        self._open.set()
        self._busy = threading.Lock()

    def hold(self) -> None:
        """Let no batch end until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Let batches end again."""
        self._open.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no batch end during the `with` block."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    @property
    def seen(self) -> list[list[int]]:
        """The ids of every sequence that was run, in order."""
        return [ids for batch in self.batches for ids in batch]

    def forward(self, batch: Batch) -> Rows:
        """f32[B, WIDTH]; see `Engine.forward`."""
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two threads are in the engine at once")
        try:
            sequences = _split(batch)
            self.batches.append([tokens.ids.tolist() for tokens in sequences])
            self.entered.release()
            if not self._open.wait(SAFETY_S):
                raise AssertionError("the engine was held and never released")
            return self._rows(sequences)
        finally:
            self._busy.release()

    def forward_tokens(self, batch: Batch) -> tuple[Rows, Rows]:
        """f32[B, WIDTH] and f32[T, 2]: each token's own id, twice."""
        return self.forward(batch), np.repeat(batch.input_ids[:, None], 2, axis=1).astype(np.float32)

    def padding_share(self) -> float:
        """0: no token is padding."""
        return 0.0

    def num_shared_tokens(self) -> int:
        """Returns 0: every token is computed."""
        return 0

    def close(self) -> None:
        """Mark the engine as closed."""
        self.is_closed = True

    def _rows(self, sequences: Sequence[Tokens]) -> Rows:
        if self.num_failures > 0:
            self.num_failures -= 1
            raise EngineFaultError("this batch fails, whatever it holds")
        rows = np.stack([row_of(tokens) for tokens in sequences])
        for tokens, row in zip(sequences, rows, strict=True):
            ids = set(tokens.ids.tolist())
            if ids & self.raises_on:
                raise EngineFaultError(f"the sequence with the ids {sorted(ids)} fails")
            if ids & self.nan_on:
                row[WIDTH // 2] = np.nan
        return rows


def row_of(tokens: Tokens) -> Rows:
    """f32[WIDTH], the row of these tokens; other tokens have another row."""
    digest = hashlib.blake2b(
        tokens.ids.astype("<i4").tobytes() + tokens.type_ids.astype("<i4").tobytes(), digest_size=2 * WIDTH
    )
    row: Rows = np.frombuffer(digest.digest(), "<u2").astype(np.float32) / np.float32(65_536)
    return row


def rows_of(items: Iterable[Tokens]) -> Rows:
    """f32[N, WIDTH], the right rows of these sequences."""
    return np.stack([row_of(item) for item in items])


def tokens_of(*ids: int) -> Tokens:
    """A sequence of these ids."""
    array = np.array(ids, np.int32)
    return Tokens(array, np.zeros_like(array))


def tokens_of_length(length: int, first: int = 0) -> Tokens:
    """A sequence of `length` ids, all of them `first`."""
    return tokens_of(*[first] * length)


async def entered(engine: FakeEngine, num_batches: int = 1) -> None:
    """Wait until the engine has received this many further batches."""
    for _ in range(num_batches):
        assert await asyncio.to_thread(engine.entered.acquire, timeout=SAFETY_S), "the engine was never called"


async def at_rest() -> None:
    """Wait until every task of the event loop waits for the engine."""
    for _ in range(10):
        await asyncio.sleep(0)


async def ended(*tasks: asyncio.Task[ResultT]) -> list[ResultT | BaseException]:
    """The results or exceptions of the tasks; fails if they do not end."""
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SAFETY_S)


def submitted(runner: Runner, *inputs: Sequence[Tokens], deadline: float | None = None) -> list[asyncio.Task[Ticket]]:
    """A task of each request, not yet begun."""
    return [asyncio.create_task(runner.submit(tokens, deadline=deadline)) for tokens in inputs]


def requests(num_requests: int, seed: int = 0) -> list[list[Tokens]]:
    """Requests of 1 to 6 sequences of 2 to 41 ids, no two sequences alike."""
    numbers = random.Random(seed)
    return [
        [
            tokens_of(request, item, *(numbers.randrange(500) for _ in range(numbers.randrange(40))))
            for item in range(numbers.randint(1, 6))
        ]
        for request in range(num_requests)
    ]


@dataclass
class Clock:
    """A clock that the test sets."""

    now: float = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def watched(runner: Runner, clock: Clock, seconds: int) -> str | None:
    """What a runner that is watched each second says after so many seconds."""
    for _ in range(seconds):
        clock.now += 1
        found = runner.broken
    return found


def _split(batch: Batch) -> list[Tokens]:
    ends = batch.cu_seqlens[1:-1]
    parts = zip(np.split(batch.input_ids, ends), np.split(batch.type_ids, ends), strict=True)
    return [Tokens(ids, type_ids) for ids, type_ids in parts]
