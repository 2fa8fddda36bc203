"""Returns the memory that large requests have freed to the operating system."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from typing import Any

_DELAY_S = 1.0  # delay after a large request; one call serves all large requests that end within it


class MemoryReturner:
    """Asks the C library to return freed memory. By default glibc returns only memory at the end of its heap."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        # musl and macOS do not have malloc_trim and do not need it
        self._trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def later(self) -> None:
        """Schedules the return of memory in one second. It runs on a thread, because it takes some milliseconds."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_DELAY_S, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._trim is not None:
            loop.run_in_executor(None, self._trim, 0)
