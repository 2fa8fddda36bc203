"""`bei serve` with faults at its seams, of a seed: the engine, the tokenizer, the disk, the clock.

The faults begin when the server listens, because earlier ones may end it. A line `fault in SEAM` says that there was
one. The disk's are those of what a server does there while it serves: it writes log lines, and reads `api_keys_file`
again after a change.

python -m tests.chaos.faulty SEED serve --model-id ...
"""

from __future__ import annotations

import errno
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from bei_core.cli.main import main
from bei_core.config import files as settings_files
from bei_core.engines.openvino.engine import OpenVinoEngine
from bei_core.http import keys
from bei_core.text import files, tokenizer

# The part of the calls that fail.
ENGINE = 0.1
TOKENIZER = 0.05
CLOCK = 0.5
LOG = 0.3
FILES = 0.3

JUMP_S = 3600.0  # of the clock, forward or back, for one reading of it
SEAMS = ("engine", "tokenizer", "log", "files", "clock")


class EngineFaultError(Exception):
    """An error as the engine's runtime raises it."""


class RustPanicError(BaseException):
    """A panic of the tokenizer. Like pyo3_runtime.PanicException, it is a BaseException and not an Exception."""


class Faults:
    """Decides by the seed which calls fail, and tells it."""

    def __init__(self, seed: int) -> None:
        self.is_serving = False
        self._output = sys.stderr
        self._random = {seam: random.Random(f"{seed} {seam}") for seam in SEAMS}

    def strikes(self, seam: str, share: float) -> bool:
        """Whether this call fails."""
        found = self.is_serving and self._random[seam].random() < share
        if found:
            self._output.write(f"fault in {seam}\n")
        return found

    def jump_s(self) -> float:
        """The error of the clock for one reading."""
        return self._random["clock"].choice([-JUMP_S, JUMP_S]) if self.strikes("clock", CLOCK) else 0.0


class FullDisk:
    """The standard error, in a file on a disk that is full now and then."""

    def __init__(self, output: TextIO, faults: Faults) -> None:
        self.output, self.faults = output, faults

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self.output, name)

    def write(self, text: str) -> int:
        """Write or raise OSError."""
        if self.faults.strikes("log", LOG):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.faults.is_serving |= "listening on" in text
        return self.output.write(text)


class FaultyTokenizer:
    """A tokenizer whose calls into Rust panic now and then."""

    def __init__(self, tokenizer: object, faults: Faults) -> None:
        vars(self)["inner"], vars(self)["faults"] = tokenizer, faults

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the tokenizer has
        found = getattr(self.inner, name)
        return partial(self.call, found) if name.startswith("encode_batch") else found

    def call(self, encode: Callable[..., object], *arguments: object, **options: object) -> object:
        """Return the encodings or panic."""
        if self.faults.strikes("tokenizer", TOKENIZER):
            raise RustPanicError("index out of bounds")
        return encode(*arguments, **options)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.inner, name, value)


def inject(seed: int) -> None:
    """Install the faults."""
    faults = Faults(seed)
    forward, open_tokenizer, now = OpenVinoEngine.forward, files.open_tokenizer, time.time
    read_text = settings_files.read_text

    def forward_or_fail(self: OpenVinoEngine, batch: Any) -> Any:  # noqa: ANN401
        if faults.strikes("engine", ENGINE):
            raise EngineFaultError("the runtime has failed")
        return forward(self, batch)

    def read_or_fail(path: Path) -> str:
        if faults.strikes("files", FILES):
            raise OSError(errno.EIO, "Input/output error")
        return read_text(path)

    sys.stderr = FullDisk(sys.stderr, faults)
    vars(settings_files)["read_text"] = read_or_fail
    vars(keys)["_RELOAD_S"] = 0.02  # the thread looks for a change so often
    OpenVinoEngine.forward = forward_or_fail  # type: ignore[method-assign]
    vars(tokenizer)["open_tokenizer"] = lambda path: FaultyTokenizer(open_tokenizer(path), faults)
    time.time = lambda: now() + faults.jump_s()


if __name__ == "__main__":
    inject(int(sys.argv.pop(1)))
    main()
