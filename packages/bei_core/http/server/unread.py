"""The bytes of replies that a client has not read yet: how many wait on its connection, and whether it reads them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios
from collections.abc import Callable

from bei_core.errors import OverloadedError
from bei_core.http.limits import MIN_READ_BYTES_PER_S, BodyBudget, BodyLease


class Unread:
    """What waits to be sent on one connection. It counts in the budget while the client has to read."""

    def __init__(self, transport: asyncio.WriteTransport, budget: BodyBudget, make_way: Callable[[], None]) -> None:
        """`make_way` closes the connection, because others need the memory."""
        self._transport, self._budget, self._make_way = transport, budget, make_way
        self._lease = BodyLease(budget, make_way)
        self._lease.complete()
        self._num_bytes = -1  # that the client had not received at the last check; -1: not checked yet
        self._checked_at = 0.0  # when that was, in seconds

    def begin(self) -> None:
        """The client has to read from now on. Calls `make_way` if there is no room for what waits."""
        self._num_bytes = -1
        self._budget.wait_for(self._lease)
        self._count()

    def end(self) -> None:
        """The client has read enough: from now on nothing counts."""
        self._num_bytes = -1
        self._budget.has_read(self._lease)
        self._lease.shrink(0)

    def close(self) -> None:
        """The connection is closed."""
        self._budget.has_read(self._lease)
        self._lease.release()

    def is_read(self, now: float) -> bool:
        """Whether the client has read MIN_READ_BYTES_PER_S since the last check; True for the first one.

        `now` is in seconds. What the client's system has received counts as read, and what is in the socket here does
        not: sockets hold up to some megabytes. After `begin` and `end` the next check is the first one.
        """
        num_bytes = self._transport.get_write_buffer_size() + _num_in_socket(self._transport)
        before, seconds = self._num_bytes, now - self._checked_at
        self._num_bytes, self._checked_at = num_bytes, now
        if self._lease.num_bytes:
            self._count()
        return before < 0 or before - num_bytes >= MIN_READ_BYTES_PER_S * seconds

    def _count(self) -> None:
        num_bytes = self._transport.get_write_buffer_size()
        self._lease.shrink(num_bytes)
        try:
            self._lease.grow(num_bytes - self._lease.num_bytes)
        except OverloadedError:
            self._make_way()


def _num_in_socket(transport: asyncio.BaseTransport) -> int:
    """Returns how many bytes our system holds until the client's has received them; 0 where it does not say (macOS)."""
    with contextlib.suppress(OSError):
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(found, sys.byteorder)
    return 0
