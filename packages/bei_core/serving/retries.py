"""The retry budget: the share of retries among the requests that an overloaded server accepts. Pure policy."""

from __future__ import annotations

# How many retries are accepted for each first attempt. Finagle's and Linkerd's retry budgets have the same share.
SHARE = 0.2

# The most retries that first attempts have saved up.
_MOST = 10.0


class RetryBudget:
    """Counts the first attempts that are accepted under overload, and the retries that they allow.

    A client that is refused comes again, so the longer an overload lasts, the more of the arriving requests are
    retries, and a first attempt is hardly ever accepted. So a retry beyond the budget is accepted only while the line
    is so short that it displaces no first attempt (`Admission.check_arrival`).
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._left = _MOST

    @property
    def is_spent(self) -> bool:
        """Whether a retry would be beyond the budget."""
        return self._left < 1

    def accepted(self, *, is_retry: bool) -> None:
        """Counts an accepted request."""
        self._left = max(0.0, self._left - 1) if is_retry else min(_MOST, self._left + self._share)
