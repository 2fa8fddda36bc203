"""Admission control: refuses a request at once if it would wait too long. Pure policy: time is an argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bei_core.errors import MAX_RETRY_AFTER_S, OverloadCause, OverloadedError
from bei_core.serving.queue import HEAD_START_S, SHORTEST_CLASS, Item, Pending, ServiceRate
from bei_core.serving.retries import RetryBudget

# By priority: a request is refused if the expected wait exceeds this fraction of the longest allowed wait. So requests
# of low priority are refused first and those of high priority last.
_SHARES = {"high": 1.0, "normal": 0.8, "low": 0.5}

# A retry beyond the retry budget is refused if the expected wait exceeds this fraction of what its priority allows.
_RETRY_SHARE = 0.6

# A request that is not refused on arrival is refused later only if the wait is longer by this factor. The expected wait
# changes by some percent while a request is read and tokenized, and a late refusal costs nearly as much as an answer.
_TOLERANCE = 1.05

# A batch takes at most this fraction of the longest allowed wait, because a request waits for the rest of the running
# batch, for one batch that may always wait, and for its own batch.
_BATCH_SHARE = 1 / 3

# A batch takes at most this fraction of the line, if it is larger than a full batch.
_LINE_SHARE = 1 / 4


@dataclass(frozen=True, slots=True)
class Running:
    """The batch that the engine runs now; without items if the engine is idle."""

    items: Sequence[Item[Any]] = ()
    num_tokens: int = 0
    started: float | None = None  # seconds on the clock of `now`; None: the engine is idle


class Admission:
    """Decides whether a request is accepted, by its expected wait and the limits of the server and the request."""

    def __init__(
        self,
        pending: Pending[Any],
        *,
        budget: int,
        most: int = 0,
        max_wait_s: float = math.inf,
        max_tokens: int | None = None,
    ) -> None:
        """`budget` tokens are a full batch; a batch under a long line has up to `most`."""
        self.rate = ServiceRate()
        self.running = Running()
        self._pending = pending
        self._full, self._most = budget, max(budget, most)
        self._max_wait_s = max_wait_s
        self._max_tokens = max_tokens
        self._retries = RetryBudget()
        # Priorities whose last request was refused because of the line; with True, those of retries beyond the budget.
        self._refused: set[tuple[str, bool]] = set()

    @property
    def budget(self) -> int:
        """The most tokens of the next batch.

        A full batch, or more under a long line, or less if that would take too much of the longest allowed wait.
        """
        wanted = max(self._full, _LINE_SHARE * self._pending.num_tokens_in_line)
        fitting = max(SHORTEST_CLASS, _BATCH_SHARE * self._max_wait_s * self.rate.tokens_per_s)
        return int(min(wanted, self._most, fitting))

    @property
    def has_line(self) -> bool:
        """Whether at least one full batch of tokens waits in the line. Until then, no request is refused on arrival."""
        return self._pending.num_tokens_in_line >= self.budget

    @property
    def num_inputs_of_batch(self) -> int:
        """How many inputs make a full batch, by their average length in the queue; 1 if none waits."""
        num_items, num_tokens = self._pending.num_items, self._pending.num_tokens  # the engine's thread changes them
        return max(1, min(self._full, self.budget) * num_items // max(1, num_tokens)) if num_items else 1

    def compute_s(self, num_tokens: int) -> float:
        """Returns the expected time of a batch of `num_tokens` tokens, in seconds, once it has its turn."""
        return self.rate.seconds(num_tokens, self.budget)

    def expected_s(self, num_tokens: int) -> float:
        """Returns the expected time until `num_tokens` tokens are computed, in seconds; each batch waits for a turn."""
        budget = self.budget
        return self.rate.seconds(num_tokens, budget) + -(-num_tokens // budget) * self.rate.turn_wait_s

    def wait_s(self, now: float) -> float:
        """Returns the expected time, in seconds, until an item that is queued now starts to run."""
        running, left_s = self.running, 0.0
        if running.started is not None:
            left_s = max(0.0, running.started + self.compute_s(running.num_tokens) - now)
        return left_s + self.expected_s(self._pending.num_tokens_ahead(now))

    def check_arrival(self, now: float, priority: str, num_coming: int, *, is_retry: bool = False) -> None:
        """Raises OverloadedError if a request that has just arrived should be refused, whatever it contains.

        `num_coming` other requests are accepted and not queued yet; each counts as one input of average length. After a
        refusal, all requests of this priority are refused until there is space in the line for a full batch. So
        requests are accepted in groups, which takes less of the processors than one here and one there. A retry is
        told to come again after twice the wait.
        """
        pending, batch, is_beyond = self._pending, self.budget, is_retry and self._retries.is_spent
        group = min(self._full, batch) if (priority, is_beyond) in self._refused else 0
        average = pending.num_tokens / max(1, pending.num_items)
        try:
            share = _SHARES[priority] * (_RETRY_SHARE if is_beyond else 1)
            self._check_line(now, share, batch + group + int(num_coming * average))
        except OverloadedError:
            self._refused.add((priority, is_beyond))
            if is_retry:
                raise self._retry_refusal(now, is_beyond=is_beyond) from None
            raise
        self._refused.discard((priority, is_beyond))

    def accepted(self, *, is_retry: bool) -> None:
        """Counts a request that `check_arrival` did not refuse, for the budget of retries."""
        self._retries.accepted(is_retry=is_retry)

    def _retry_refusal(self, now: float, *, is_beyond: bool) -> OverloadedError:
        wait_s = self.wait_s(now)
        what = f"the requests that wait already take {wait_s:.1f} s, and this is a retry"
        return overloaded(what, "retry_budget" if is_beyond else "queue_wait", 2 * wait_s)

    def check_line(self, now: float, priority: str) -> None:
        """Raises OverloadedError if a batch of this priority would be computed too late."""
        self._check_line(now, _TOLERANCE * _SHARES[priority], self.budget)

    def _check_line(self, now: float, share: float, num_tokens: int) -> None:
        """Raises OverloadedError if `num_tokens` tokens would take more than this share of the longest allowed wait."""
        if self._pending.num_tokens_ahead(now) >= self.budget:
            wait_s = self.wait_s(now)
            if wait_s + self.expected_s(num_tokens) > self._max_wait_s * share:
                raise overloaded(f"the requests that wait already take {wait_s:.1f} s", "queue_wait", wait_s)

    def check(self, num_tokens: int, now: float, priority: str, deadline: float | None, num_items: int = 1) -> None:
        """Raises OverloadedError if a request of `num_tokens` tokens in `num_items` items should be refused.

        The reasons are a too long wait, too many tokens in the queue, or an expected end after its deadline. `now` and
        `deadline` are in seconds on the same clock.
        """
        self.check_line(now, priority)
        waiting = self._pending.num_tokens
        if self._max_tokens is not None and waiting + num_tokens > self._max_tokens:
            raise overloaded(f"{waiting} tokens are waiting already", "queue_tokens", self.expected_s(waiting))
        if deadline is not None and (late_s := self._late_s(num_tokens, num_items, now, priority, deadline)) > 0:
            raise overloaded(f"the request would end {late_s:.2f} s after its deadline", "deadline", late_s)

    def _late_s(self, num_tokens: int, num_items: int, now: float, priority: str, deadline: float) -> float:
        """Returns the seconds from its deadline to the expected end of a request; negative if it ends before it.

        A request larger than one batch waits again for each of its batches, of which an item is in one, but in total at
        most as long as everything in the queue takes. A small request ends when the whole batch that contains it ends.
        """
        line_s, num_turns = self.wait_s(now), min(num_items, -(-num_tokens // self._full))
        wait_s = min(num_turns * line_s, line_s + self.expected_s(self._pending.num_tokens))
        batch = min(self.budget, self._pending.num_tokens_in_line + num_tokens)
        own_s = self.expected_s(max(num_tokens, batch))
        return max(0.0, wait_s - max(0.0, HEAD_START_S[priority])) + own_s - (deadline - now)


def overloaded(what: str, cause: OverloadCause, wait_s: float) -> OverloadedError:
    """Returns the error for a refused request; `wait_s` is the time in seconds after which the client may retry."""
    retry_after_s = min(max(1, math.ceil(wait_s)), MAX_RETRY_AFTER_S)
    return OverloadedError(f"{what}; try again in {retry_after_s} s", cause=cause, retry_after_s=retry_after_s)
