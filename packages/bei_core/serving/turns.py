"""Engines that share the processors take turns: each one uses them all, so two at once would only slow each other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from bei_core.errors import UnhealthyError

_LOOK_S = 1.0  # how often a waiting one looks whether the one before it hangs


class Holder(Protocol):
    """Who takes turns, from one thread of its own."""

    @property
    def broken(self) -> str | None:
        """Why it will never give its turn back, if it will not."""


class Turns:
    """A lock given in the order in which it was asked for. Once a holder is broken in its turn, so is it for all."""

    def __init__(self) -> None:
        self._line: deque[Holder] = deque()  # the first has its turn, the others wait for theirs
        self._changed = threading.Condition()
        self._broken: str | None = None

    @contextmanager
    def taken(self, holder: Holder) -> Iterator[None]:
        """The holder's turn. Raises UnhealthyError where one before it hangs and so never ends its own."""
        self._wait(holder)
        try:
            yield
        finally:
            with self._changed:
                self._broken = self._broken or holder.broken
                self._line.popleft()
                self._changed.notify_all()

    def _wait(self, holder: Holder) -> None:
        with self._changed:
            self._line.append(holder)
            while self._fault(holder) is None and self._line[0] is not holder:
                self._changed.wait(_LOOK_S)
            if self._broken is not None:
                self._line.remove(holder)
                self._changed.notify_all()
                raise UnhealthyError(f"another model of this server broke down: {self._broken}")

    def _fault(self, holder: Holder) -> str | None:
        """Why no turn will come, if none will; asks the one whose turn it is."""
        first = self._line[0]
        if self._broken is None and first is not holder:
            self._broken = first.broken
        return self._broken
