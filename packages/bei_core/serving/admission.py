"""Admission: a request that would wait too long is refused at once. No thread, clock or engine: time is an argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bei_core.errors import OverloadedError
from bei_core.serving.queue import HEAD_START_S, Item, Pending, ServiceRate

# The part of the longest wait that the line may have before a request of this priority is refused. So urgent requests
# are still let in where normal ones are refused, and those that can wait are refused first.
_SHARES = {"high": 1.0, "normal": 0.8, "low": 0.5}

# OpenAI's client takes no notice of a longer Retry-After.
_MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Running:
    """The batch that the engine runs."""

    items: Sequence[Item[Any]] = ()
    num_tokens: int = 0
    started: float | None = None  # None: the engine is idle


class Admission:
    """Compares the expected wait in the queue with what the server and the request allow."""

    def __init__(
        self, pending: Pending[Any], *, budget: int, max_wait_s: float = math.inf, max_tokens: int | None = None
    ) -> None:
        self.rate = ServiceRate()
        self.running = Running()
        self._pending = pending
        self._budget = budget  # tokens of a batch
        self._max_wait_s = max_wait_s
        self._max_tokens = max_tokens

    @property
    def has_line(self) -> bool:
        """Whether a batch waits already. One may always wait, however slow the engine is."""
        return self._pending.num_tokens_in_line >= self._budget

    def expected_s(self, num_tokens: int) -> float:
        """The expected time for so many tokens."""
        return self.rate.seconds(num_tokens, self._budget)

    def wait_s(self, now: float) -> float:
        """The expected time until an item runs that joins the line now."""
        running, left_s = self.running, 0.0
        if running.started is not None:
            left_s = max(0.0, running.started + self.expected_s(running.num_tokens) - now)
        return left_s + self.expected_s(self._pending.num_tokens_in_line)

    def check_line(self, now: float, priority: str) -> None:
        """Raises OverloadedError if the line is too long for any further request of this priority."""
        if self.has_line:
            wait_s = self.wait_s(now)
            if wait_s > self._max_wait_s * _SHARES[priority]:
                raise overloaded(f"the requests that wait already take {wait_s:.1f} s", "queue_wait", wait_s)

    def check(self, num_tokens: int, now: float, priority: str, deadline: float | None) -> None:
        """Raises OverloadedError for a request of so many tokens that should not be accepted while others wait."""
        self.check_line(now, priority)
        waiting = self._pending.num_tokens
        if self._max_tokens is not None and waiting + num_tokens > self._max_tokens:
            raise overloaded(f"{waiting} tokens are waiting already", "queue_tokens", self.expected_s(waiting))
        if deadline is not None and (late_s := self._late_s(num_tokens, now, priority, deadline)) > 0:
            raise overloaded(f"the request would end {late_s:.2f} s after its deadline", "deadline", late_s)

    def _late_s(self, num_tokens: int, now: float, priority: str, deadline: float) -> float:
        """How long after its deadline a request of so many tokens would end.

        A large request waits for the line at each of its turns, but not longer than all that waits takes. A small one
        ends with the whole batch that it is in.
        """
        line_s, num_turns = self.wait_s(now), -(-num_tokens // self._budget)
        wait_s = min(num_turns * line_s, line_s + self.expected_s(self._pending.num_tokens))
        batch = min(self._budget, self._pending.num_tokens_in_line + num_tokens)
        own_s = self.expected_s(max(num_tokens, batch))
        return max(0.0, wait_s - max(0.0, HEAD_START_S[priority])) + own_s - (deadline - now)


def overloaded(what: str, cause: str, wait_s: float) -> OverloadedError:
    """The error for a request that is refused for this cause, and may be repeated after `wait_s`."""
    retry_after_s = min(max(1, math.ceil(wait_s)), _MAX_RETRY_AFTER_S)
    return OverloadedError(f"{what}; try again in {retry_after_s} s", cause=cause, retry_after_s=retry_after_s)
