"""The progress of a download: a bar on a terminal, a few log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

_EVERY_S = 10.0  # between log lines


class Progress:
    """The progress of one download, shown during a `with` block. Any thread may call `add` and `skip`."""

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total  # bytes, if known
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._lock = threading.Lock()
        self._bar: Any = None
        self._skipped = 0  # bytes that an earlier process has fetched
        self._done = 0  # bytes that this process has fetched

    def __enter__(self) -> Progress:
        self._started = self._logged = self._clock()
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, desc=self._what, unit="B", unit_scale=True, file=sys.stderr)
        else:
            log.info("fetching %s: %s", self._what, "size unknown" if self._total is None else size(self._total))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            log.info("fetched %s: %s", self._what, rate(self._done, self._clock() - self._started))

    def skip(self, count: int) -> None:
        """Count bytes that an earlier process has fetched."""
        with self._lock:
            self._skipped += count
            self._show(count)

    def add(self, count: int) -> None:
        """Count bytes that have arrived."""
        with self._lock:
            self._done += count
            self._show(count)

    def _show(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)
        elif self._clock() - self._logged >= _EVERY_S:
            self._logged = self._clock()
            now = self._skipped + self._done
            share = f" of {size(self._total)} ({100 * now / self._total:.0f}%)" if self._total else ""
            log.info("fetching %s: %s%s", self._what, size(now), share)


def size(count: float) -> str:
    """A number of bytes as text, such as "4.2 GB"."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and units[1:]:
        count /= 1000
        del units[0]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"


def rate(count: int, seconds: float) -> str:
    """Bytes, seconds and bytes per second as text, such as "4.2 GB in 2.0 s (2.1 GB/s)"."""
    return f"{size(count)} in {seconds:.1f} s ({size(count / max(seconds, 1e-3))}/s)"
