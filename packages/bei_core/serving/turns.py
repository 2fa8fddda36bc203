"""Turns among engines that share the processors. Each engine uses all of them, so two at once would be slower."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from bei_core.errors import UnhealthyError

_CHECK_S = 1.0  # how often a waiting engine checks whether the one before it hangs


class Holder(Protocol):
    """An engine that takes turns, on one thread of its own."""

    @property
    def broken(self) -> str | None:
        """Why it will never end its turn; None if it will."""


class Turns:
    """A lock that is granted in the order of requests. If a holder breaks in its turn, all others fail too."""

    def __init__(self) -> None:
        self._line: deque[Holder] = deque()  # the first one has its turn, the others wait
        self._changed = threading.Condition()
        self._broken: str | None = None

    @contextmanager
    def taken(self, holder: Holder) -> Iterator[None]:
        """The holder's turn. Raises UnhealthyError if a holder before it hangs and so never ends its turn."""
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
                self._changed.wait(_CHECK_S)
            if self._broken is not None:
                self._line.remove(holder)
                self._changed.notify_all()
                raise UnhealthyError(f"another model of this server broke down: {self._broken}")

    def _fault(self, holder: Holder) -> str | None:
        """Why the holder's turn will never come; None if it will. Asks the holder whose turn it is."""
        first = self._line[0]
        if self._broken is None and first is not holder:
            self._broken = first.broken
        return self._broken
