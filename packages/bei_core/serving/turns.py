"""Turns among engines that share the processors. Each engine uses all of them, so two at once would be slower."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_CHECK_S = 1.0  # how often a waiting engine looks whether the turn before it has taken too long


@dataclass(slots=True, eq=False)
class _Turn:
    """One place in the line."""

    limit_s: float
    until: float | None = None  # None: it has not begun


class Turns:
    """A lock that is granted in the order of requests. A turn that takes too long is over for the others.

    So an engine that hangs costs the others one wait. If it goes on after all, two engines run at once for a while.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._line: deque[_Turn] = deque()  # the first one has begun, the others wait
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, limit_s: float) -> Iterator[None]:
        """One turn, which the others wait for at most `limit_s` from its beginning on."""
        turn = _Turn(limit_s)
        with self._changed:
            self._line.append(turn)
            while (first := self._line[0]) is not turn:
                if first.until is not None and self._clock() >= first.until:
                    self._end(first)
                else:
                    self._changed.wait(_CHECK_S if first.until is None else min(_CHECK_S, first.until - self._clock()))
            turn.until = self._clock() + limit_s
        try:
            yield
        finally:
            with self._changed:
                if turn in self._line:
                    self._end(turn)

    def _end(self, turn: _Turn) -> None:
        self._line.remove(turn)
        self._changed.notify_all()
