"""Garbage collections of a server or a job, and the return of freed memory to the operating system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from typing import Any

from bei_core.http.limits import BodyBudget

_DELAY_S = 1.0  # delay after a large request; one call serves all requests that end within it

# Parameters of glibc's malloc, from malloc.h, and their values in bytes. Free memory at the end of a thread's heap is
# kept up to the first, also by malloc_trim. By default glibc raises both: after a block of 30 MB, the first to 60 MB.
_HEAP_LIMITS = {
    -1: 1 << 20,  # M_TRIM_THRESHOLD
    -3: 32 << 20,  # M_MMAP_THRESHOLD, the most that it can be: larger blocks are outside the heaps
}

_NUM_YOUNG = 10_000  # new objects that can hold others after which a collection begins


def limit_collections() -> None:
    """Makes full collections of Python's garbage rare and short from now on; each stops all threads until it ends.

    Objects made so far are never garbage: to visit them takes 100 ms. With Python's 700 instead of _NUM_YOUNG, a full
    collection began while one body of 60,000 lists was decoded, and took 35 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NUM_YOUNG, *gc.get_threshold()[1:])


def open_budget(limit: int) -> BodyBudget:
    """Returns a budget of `limit` bytes. After large requests, freed memory is returned to the operating system."""
    budget = BodyBudget(limit)
    budget.on_large_release = MemoryReturner(lambda: budget.num_bytes > 0).later
    return budget


class MemoryReturner:
    """Asks the C library to return freed memory. By default glibc returns only memory at the end of its heap."""

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self._timer: asyncio.TimerHandle | None = None
        library = ctypes.CDLL(None)
        # musl and macOS do not have malloc_trim and do not need it
        self._trim: Callable[[int], Any] | None = getattr(library, "malloc_trim", None)
        if self._trim is not None:
            for parameter, value in _HEAP_LIMITS.items():
                library.mallopt(parameter, value)

    def later(self) -> None:
        """Schedules the return of memory in one second, and each second again while requests are in progress.

        Small requests, too, use again what has been returned. It runs on a thread, because it takes some milliseconds.
        """
        if self._timer is None and self._trim is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_DELAY_S, self._begin, loop, self._trim)

    def _begin(self, loop: asyncio.AbstractEventLoop, trim: Callable[[int], Any]) -> None:
        self._timer = None
        loop.run_in_executor(None, trim, 0)
        if self._is_busy():
            self.later()
