"""Garbage collections of a server or a job, and the return of freed memory to the operating system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from typing import Any

from bei_core.http.limits import BodyBudget

_DELAY_S = 1.0  # delay after a large request; one call serves all requests that end within it

# Parameters of glibc's malloc, from malloc.h. By default glibc raises both: after a block of 30 MB, the first to 60 MB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 20  # free memory that is kept at the end of a thread's heap, also by malloc_trim
_SERVER_BLOCK_BYTES = 32 << 20  # the most that M_MMAP_THRESHOLD can be

_NUM_YOUNG = 10_000  # new objects that can hold others after which a collection begins


def limit_collections() -> None:
    """Makes full collections of Python's garbage rare and short from now on; each stops all threads until it ends.

    Objects made so far are never garbage: to visit them takes 100 ms. With Python's 700 instead of _NUM_YOUNG, a full
    collection began while one body of 60,000 lists was decoded, and took 35 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NUM_YOUNG, *gc.get_threshold()[1:])


def limit_heaps(block_bytes: int) -> None:
    """Lets glibc keep little free memory from now on, and blocks of more than `block_bytes` outside its heaps.

    Such blocks go back to the operating system when they are freed. Other C libraries do so by themselves.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        set_option(_M_MMAP_THRESHOLD, block_bytes)


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
        # musl and macOS do not have malloc_trim and do not need it
        self._trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        limit_heaps(_SERVER_BLOCK_BYTES)

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
