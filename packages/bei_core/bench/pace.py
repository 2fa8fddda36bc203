"""Arrival times of the open loop, and a timer for them.

An event loop's own timers have a resolution of 1 ms, which is a quarter of the latency to be measured. A Linux timerfd
on the loop is late by 0.04 ms (p50; 0.15 ms at p99 on a quiet machine) and costs 55 us of CPU per request; a sleeping
thread is late by 0.10 ms and costs 77 us. Other systems use the loop's timers; the report's lag shows their delay.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

_TFD_NONBLOCK = os.O_NONBLOCK if sys.platform == "linux" else 0
_CLOCK_MONOTONIC = 1  # the clock of time.perf_counter() on Linux


def arrivals(rate: float, count: int, seed: int) -> Iterator[float]:
    """`count` arrival times in seconds from the start: a Poisson process with `rate` arrivals per second."""
    draw = random.Random(seed)  # noqa: S311, not for cryptography
    return accumulate(draw.expovariate(rate) for _ in range(count))


class Pacer:
    """Calls `announce` with the times that are due; `times` are ascending values of `time.perf_counter()`."""

    def __init__(self, times: Sequence[float], announce: Callable[[Sequence[float]], None]) -> None:
        self._times = times
        self._announce = announce
        self._next = 0
        self._loop = asyncio.get_running_loop()
        self._timer = _TimerFd(self._loop, self._due) if sys.platform == "linux" else None
        self._arm()

    def _arm(self) -> None:
        if self._next == len(self._times):
            if self._timer is not None:
                self._timer.close()
            return
        delay = max(1e-6, self._times[self._next] - time.perf_counter())  # 0 would disarm a timerfd
        if self._timer is not None:
            self._timer.set(delay)
        else:
            self._loop.call_later(delay, self._due)

    def _due(self) -> None:
        first, now = self._next, time.perf_counter()
        while self._next < len(self._times) and self._times[self._next] <= now:
            self._next += 1
        if self._next > first:
            self._announce(self._times[first : self._next])
        self._arm()


class _TimerFd:
    """A Linux timerfd on the event loop, by ctypes (`os.timerfd_create` exists from Python 3.13 on)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._loop = loop
        self._fd = self._checked(self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK))
        loop.add_reader(self._fd, self._expired, due)

    def set(self, delay_s: float) -> None:
        """Sets the timer to expire once, in `delay_s` seconds."""
        whole = int(delay_s)
        once = struct.pack("qqqq", 0, 0, whole, int((delay_s - whole) * 1e9))  # struct itimerspec: interval, value
        self._checked(self._libc.timerfd_settime(self._fd, 0, once, None))

    def close(self) -> None:
        """Removes the timer from the loop and closes it."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expired(self, due: Callable[[], None]) -> None:
        os.read(self._fd, 8)
        due()

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), "timerfd")
        return result
