"""Arrivals of the open loop: when they are due, and an alarm that goes off then.

An event loop's own timers are a millisecond coarse, which is a quarter of the latency that is to be measured. A Linux
timerfd on the loop is late by 0.04 ms (p50; 0.15 at p99 on a quiet machine), and costs 55 us of CPU a request where a
thread that sleeps and calls in is late by 0.10 ms and costs 77. On
other systems the loop's timers have to do; the report's lag says how late they were.
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
_CLOCK_MONOTONIC = 1  # what time.perf_counter() reads on Linux


def arrivals(rate: float, count: int, seed: int) -> Iterator[float]:
    """`count` arrival times in seconds from the start: a Poisson process of `rate` a second, the same for a seed."""
    draw = random.Random(seed)  # noqa: S311, a schedule is no secret
    return accumulate(draw.expovariate(rate) for _ in range(count))


class Pacer:
    """Announces each of `times` (of `time.perf_counter`, ascending) when it is due; those due together at once."""

    def __init__(self, times: Sequence[float], announce: Callable[[Sequence[float]], None]) -> None:
        self._times = times
        self._announce = announce
        self._next = 0
        self._loop = asyncio.get_running_loop()
        self._alarm = _TimerFd(self._loop, self._due) if sys.platform == "linux" else None
        self._arm()

    def _arm(self) -> None:
        if self._next == len(self._times):
            if self._alarm is not None:
                self._alarm.close()
            return
        delay = max(1e-6, self._times[self._next] - time.perf_counter())  # 0 would disarm a timerfd
        if self._alarm is not None:
            self._alarm.set(delay)
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
    """One timer of the Linux kernel as a file on the loop; Python itself has it from 3.13 on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._loop = loop
        self._fd = self._checked(self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK))
        loop.add_reader(self._fd, self._ring, due)

    def set(self, delay_s: float) -> None:
        """Goes off once, in `delay_s` seconds."""
        whole = int(delay_s)
        once = struct.pack("qqqq", 0, 0, whole, int((delay_s - whole) * 1e9))  # struct itimerspec: interval, value
        self._checked(self._libc.timerfd_settime(self._fd, 0, once, None))

    def close(self) -> None:
        """Takes it off the loop."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self, due: Callable[[], None]) -> None:
        os.read(self._fd, 8)
        due()

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), "timerfd")
        return result
