"""Memory that large requests leave behind goes back to the system."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from typing import Any

_DELAY_S = 1.0  # after a large request; the others that end meanwhile need no call of their own


class MemoryReturner:
    """Asks the C library to return freed memory: glibc keeps it, but for that at the end of its heap."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        # musl and macOS have none, and need none
        self._trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def later(self) -> None:
        """Returns memory in a second, on a thread, as walking the heap takes some milliseconds."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_DELAY_S, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._trim is not None:
            loop.run_in_executor(None, self._trim, 0)
