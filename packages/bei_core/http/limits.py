"""What a client may cost the server: the limits that are not settings, and the budget of bytes of request bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bei_core.errors import OverloadedError

# Bytes of a request's head, and of the chunk sizes and trailers around a body. More than any proxy adds.
MAX_HEAD_BYTES = 65_536

MAX_HEADERS = 256

# Bytes of later requests that are read while one is answered. Beyond it they wait in the sockets of both ends.
MAX_UNPARSED_BYTES = 16_384

# Bytes of a body that are read before the application takes them.
MAX_UNREAD_BODY_BYTES = 65_536

# How long what a client still sends is thrown away after its last reply: closing earlier would reset the connection,
# and the client might lose the reply.
LINGER_S = 2.0

# How long idle connections stay open after the signal to end: a request that is on its way on one is still answered.
ON_ITS_WAY_S = 0.25

# How long a draining server waits for a client that sends nothing more of its request or reads nothing of its reply.
DRAIN_STALL_S = 5.0

# The part of `drain_timeout_s` that connections have; the rest is for engines and traces to close.
DRAIN_SHARE = 0.8

# File descriptors that connections leave free: for files, for replies of 503 beyond max_connections, for probes.
RESERVED_FILES = 64
MAX_REFUSED_CONNECTIONS = 32
MAX_HEALTH_CONNECTIONS = 32

# What the JSON of a body may hold. A list or an object costs 50 times its bytes once it is decoded, and every garbage
# collection visits it; a number 15 times. A text needs no more than what any tokenizer reads of it, several times over.
MAX_JSON_CONTAINERS = 65_536
MAX_JSON_VALUES = 1_200_000
MAX_JSON_DEPTH = 64
MAX_JSON_FIELDS = 8192  # of one large object
MAX_JSON_TEXT_BYTES = 4_194_304

# Characters of which /tokenize lists the tokens, in one text and in all of a request, and the bytes of memory that a
# listed token takes.
MAX_LISTED_TEXT_CHARS = 131_072
MAX_LISTED_CHARS = 1_000_000
BYTES_PER_SPAN = 500

# Memory of a request after which freed memory is returned to the system.
LARGE_BYTES = 1_048_576

# The key of a request's BodyLease among the extensions of its ASGI scope.
LEASE = "bei.body_lease"


class BodyBudget:
    """The bytes of all request bodies and large replies in memory, at most `limit`."""

    def __init__(self, limit: int, on_large_release: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self.on_large_release = on_large_release
        self.num_bytes = 0
        self.incomplete: set[BodyLease] = set()  # those whose clients are still sending

    def error(self) -> OverloadedError:
        """What is said to a client whose body finds no room."""
        return OverloadedError(f"the bodies of the requests in progress have {self.limit} bytes already; try again")

    def make_room(self, lease: BodyLease) -> None:
        """Refuses the largest incomplete bodies until the limit holds.

        Raises OverloadedError if none of them is larger than what `lease` has itself.
        """
        while self.num_bytes > self.limit:
            largest = max(self.incomplete, key=lambda other: other.num_bytes, default=lease)
            if largest.num_bytes <= lease.num_bytes:
                raise self.error()
            largest.release()
            largest.refuse()


class BodyLease:
    """One request's part of the budget."""

    __slots__ = ("_budget", "_released", "num_bytes", "refuse")

    def __init__(self, budget: BodyBudget, refuse: Callable[[], None]) -> None:
        self._budget = budget
        self._released = False
        self.num_bytes = 0
        self.refuse = refuse  # ends the request with 429, while it is incomplete
        budget.incomplete.add(self)

    def grow(self, num_bytes: int) -> None:
        """Takes more bytes. Raises OverloadedError, and takes none, if the budget has no room for them."""
        if self._released:
            return
        self._add(num_bytes)
        if self._budget.num_bytes > self._budget.limit:
            try:
                self._budget.make_room(self)
            except OverloadedError:
                self._add(-num_bytes)
                raise

    def complete(self) -> None:
        """Says that the whole body is here, so that the request is not refused for another one."""
        self._budget.incomplete.discard(self)

    def release(self) -> None:
        """Gives everything back; nothing can be taken after."""
        self.complete()
        if self.num_bytes > LARGE_BYTES:
            self._budget.on_large_release()
        self._add(-self.num_bytes)
        self._released = True

    def _add(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._budget.num_bytes += num_bytes


def count_bytes(scope: Mapping[str, Any], num_bytes: int) -> None:
    """Counts bytes that the application makes of a request's body, as by decompressing it, until the request ends.

    Raises OverloadedError if the budget has no room for them. Does nothing under a server that has no budget.
    """
    lease = scope.get("extensions", {}).get(LEASE)
    if lease is not None:
        lease.grow(num_bytes)
