"""Lets engines that share the processors run in turns. Each engine uses all processors, so two at once are slower."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_CHECK_S = 1.0  # how often a waiting engine checks whether the current turn has exceeded its limit


@dataclass(slots=True, eq=False)
class _Turn:
    """One request for the lock, waiting or granted."""

    until: float | None = None  # when it times out, in seconds on the clock of `Turns`; None: it has no limit yet


class Turns:
    """A lock that is granted in the order of requests, each time for a time that its holder limits.

    After the limit the next engine gets the lock, so a hanging engine delays the others only once. If that engine
    continues later, two engines run at the same time for a while.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._line: deque[_Turn] = deque()  # the first turn has the lock, the others wait
        self._changed = threading.Condition()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the lock and holds it until the block ends, or the time of `limit` is over."""
        turn = _Turn()
        with self._changed:
            self._line.append(turn)
            while (first := self._line[0]) is not turn:
                if first.until is not None and self._clock() >= first.until:
                    self._end(first)
                else:
                    self._changed.wait(_CHECK_S if first.until is None else min(_CHECK_S, first.until - self._clock()))
        try:
            yield
        finally:
            with self._changed:
                if turn in self._line:
                    self._end(turn)

    def limit(self, limit_s: float) -> None:
        """Ends the current turn `limit_s` seconds from now, if it has not ended then. Only its holder may call this."""
        with self._changed:
            self._line[0].until = self._clock() + limit_s

    def _end(self, turn: _Turn) -> None:
        self._line.remove(turn)
        self._changed.notify_all()
