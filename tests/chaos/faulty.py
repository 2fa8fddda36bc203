"""`bei serve` with faults at its seams, of a seed: the engine, the tokenizer, the disk, the engine store, the clock.

python -m tests.chaos.faulty SEED serve --model-id ...
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bei_core.cli.main import main
from bei_core.engines.openvino.engine import OpenVinoEngine
from bei_core.text import files, tokenizer

# The part of the calls that fail, once the server is warm.
ENGINE = 0.1
TOKENIZER = 0.05
CLOCK = 0.2
DISK = 0.3


class EngineFaultError(Exception):
    """An error as the engine's runtime raises it."""


class RustPanicError(BaseException):
    """A panic of the tokenizer. Like pyo3_runtime.PanicException, it is a BaseException and not an Exception."""


class FaultyTokenizer:
    """A tokenizer whose calls into Rust panic now and then."""

    def __init__(self, tokenizer: object, random_: random.Random) -> None:
        vars(self)["inner"], vars(self)["random"] = tokenizer, random_

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the tokenizer has
        found = getattr(self.inner, name)
        return partial(self.call, found) if name.startswith("encode_batch") else found

    def call(self, encode: Callable[..., object], *arguments: object, **options: object) -> object:
        """Return the encodings or panic."""
        if self.random.random() < TOKENIZER:
            raise RustPanicError("index out of bounds")
        return encode(*arguments, **options)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.inner, name, value)


def inject(seed: int) -> None:
    """Install the faults. The engine's faults begin after its warm-up, because a fault there would end the server."""
    engine, disk, clock = (random.Random(f"{seed} {seam}") for seam in ("engine", "disk", "clock"))
    forward, num_batches, open_tokenizer = OpenVinoEngine.forward, [0], files.open_tokenizer

    def forward_or_fail(self: OpenVinoEngine, batch: Any) -> Any:  # noqa: ANN401
        num_batches[0] += 1
        if num_batches[0] > 50 and engine.random() < ENGINE:
            raise EngineFaultError("the runtime has failed")
        return forward(self, batch)

    def touch_or_fail(*arguments: Any, **options: Any) -> None:  # noqa: ANN401
        if disk.random() < DISK:
            raise OSError(errno.ENOSPC, "No space left on device")
        touch(*arguments, **options)

    touch, now = os.utime, time.time
    os.utime = touch_or_fail
    OpenVinoEngine.forward = forward_or_fail  # type: ignore[method-assign]
    panics = random.Random(f"{seed} tokenizer")
    vars(tokenizer)["open_tokenizer"] = lambda path: FaultyTokenizer(open_tokenizer(path), panics)
    time.time = lambda: now() + (clock.choice([-3600.0, 3600.0]) if clock.random() < CLOCK else 0.0)


if __name__ == "__main__":
    inject(int(sys.argv.pop(1)))
    main()
