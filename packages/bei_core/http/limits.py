"""Fixed limits on the resources that clients can use on the server, and the memory budget of request bodies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from bei_core.errors import OverloadedError

# The most bytes of a request's head, and of the chunk sizes and trailers of a body. Proxies never add this much.
MAX_HEAD_BYTES = 65_536

MAX_HEADERS = 256

# The most bytes of a URL, as of nginx. To parse 64 kB of a query would hold up the event loop for 40 ms.
MAX_URL_BYTES = 8192

# The most bytes of later requests that are read while one request is answered. More bytes stay in the socket buffers.
MAX_UNPARSED_BYTES = 16_384

# The most bytes of a body that are buffered before the application takes them.
MAX_UNREAD_BODY_BYTES = 65_536

# After so many bytes of chunked bodies, of all connections, the rest is parsed in a later turn of the event loop.
MAX_CHUNKED_BYTES = 65_536

# How long the server reads and discards data after the last reply on a connection. Closing at once would reset the
# connection, and the client could lose the reply.
LINGER_S = 2.0

# How long the event loop sleeps after it has refused requests because of overload: at most so many seconds, and at most
# this fraction of the longest wait in the queue, so that the queue does not become empty meanwhile. So the event loop
# handles several requests each time it wakes up. To wake up for each one costs several times more CPU, which the engine
# then lacks.
MAX_REST_S = 0.025
_REST_SHARE = 1 / 80

# How long after such a refusal the event loop also sleeps after requests that it accepts, in seconds.
OVERLOAD_S = 0.5

# A client that has to read its reply must take at least so many bytes a second, over any `send_timeout_s`.
MIN_READ_BYTES_PER_S = 1024

# If other requests need memory, a client makes way that has not read the next part of its reply, of 1 MB at most, for
# so many seconds.
SLOW_READ_S = 10.0

# The most bytes of a head, and of replies that wait, in each connection without being counted in the budget.
MAX_UNCOUNTED_BYTES = 16_384

# How long idle connections stay open after the signal to stop, so that requests already in the network get a reply.
ON_ITS_WAY_S = 0.25

# How long a draining server waits for a client that stopped sending its request or stopped reading its reply.
DRAIN_STALL_S = 5.0

# The fraction of `drain_timeout_s` for connections to finish; engines and traces close in the rest.
DRAIN_SHARE = 0.8

# File descriptors that are not used for normal connections: for files, for connections beyond max_connections that get
# a 503 reply, and for health probes.
RESERVED_FILES = 64
MAX_REFUSED_CONNECTIONS = 32
MAX_HEALTH_CONNECTIONS = 32

# Limits on the JSON of a body. Once decoded, a list or an object takes up to 50 times its bytes of JSON, and every
# garbage collection visits it; a number takes 15 times. The limit of a text is several times what any tokenizer reads.
MAX_JSON_CONTAINERS = 65_536
MAX_JSON_VALUES = 1_200_000
MAX_JSON_DEPTH = 64
MAX_JSON_FIELDS = 8192  # of one large object
MAX_JSON_TEXT_BYTES = 4_194_304

# The most token ids of one text that /decode and /detokenize accept: the tokenizer holds the GIL while it reads them.
MAX_DECODED_IDS = 131_072

# The most characters that /tokenize accepts in one text and in one request, and the memory of one token in its reply,
# in bytes.
MAX_LISTED_TEXT_CHARS = 131_072
MAX_LISTED_CHARS = 1_000_000
BYTES_PER_SPAN = 500

# Bytes. After a request that used more memory than this, freed memory is returned to the operating system.
LARGE_BYTES = 1_048_576

# The key of a request's BodyLease among the extensions of its ASGI scope.
LEASE = "bei.body_lease"


def rest_s(max_queue_wait_s: float) -> float:
    """Returns how long the event loop sleeps after refusals, in seconds."""
    return min(MAX_REST_S, _REST_SHARE * max_queue_wait_s)


class BodyBudget:
    """Counts the bytes of all request bodies and unread replies in memory, and keeps them at most at `limit`."""

    def __init__(
        self,
        limit: int,
        on_large_release: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.on_large_release = on_large_release
        self.num_bytes = 0
        self.incomplete: set[BodyLease] = set()  # leases of requests whose body is not complete
        self._unread: dict[BodyLease, float] = {}  # of clients that have to read, since when; the longest wait first
        self._clock = clock

    def error(self) -> OverloadedError:
        """Returns the error for a request whose body exceeds the budget."""
        said = f"the bodies of the requests in progress have {self.limit} bytes already; try again"
        return OverloadedError(said, cause="body_bytes")

    def wait_for(self, lease: BodyLease) -> None:
        """Notes that the client of a lease has to read from now on, until `has_read`."""
        self._unread[lease] = self._clock()

    def has_read(self, lease: BodyLease) -> None:
        """Notes that the client of a lease has read enough, or has left."""
        self._unread.pop(lease, None)

    def make_room(self, lease: BodyLease) -> None:
        """Refuses others until the total is within the limit.

        First clients that read slowly, the longest wait first, then incomplete requests, the largest first. Raises
        OverloadedError if no client reads slowly and no incomplete request is larger than `lease`.
        """
        while self.num_bytes > self.limit:
            unread, since = next(iter(self._unread.items()), (lease, math.inf))
            if self._clock() - since >= SLOW_READ_S:
                other = unread
                self.has_read(other)
            else:
                other = max(self.incomplete, key=lambda each: each.num_bytes, default=lease)
                if other.num_bytes <= lease.num_bytes:
                    raise self.error()
            other.release()
            other.refuse()


class BodyLease:
    """The bytes that one request, or what waits to be sent on a connection, takes from the budget."""

    __slots__ = ("_budget", "_released", "is_large", "num_bytes", "refuse")

    def __init__(self, budget: BodyBudget, refuse: Callable[[], None]) -> None:
        self._budget = budget
        self._released = False
        self.is_large = False  # its request used much memory that does not count here
        self.num_bytes = 0
        self.refuse = refuse  # replies 429, if the request is incomplete; closes the connection of a slow reader
        budget.incomplete.add(self)

    def grow(self, num_bytes: int) -> None:
        """Adds bytes to the lease. Raises OverloadedError, and adds nothing, if they exceed the budget."""
        if self._released:
            return
        self._add(num_bytes)
        if self._budget.num_bytes > self._budget.limit:
            try:
                self._budget.make_room(self)
            except OverloadedError:
                self._add(-num_bytes)
                raise

    def shrink(self, num_bytes: int) -> None:
        """Returns all but `num_bytes` to the budget; does nothing if the lease has no more."""
        if num_bytes < self.num_bytes:
            if self.num_bytes > LARGE_BYTES or self.is_large:
                self._budget.on_large_release()
            self._add(num_bytes - self.num_bytes)

    def complete(self) -> None:
        """Marks the body as complete: from now on the request is not refused to make space for another one."""
        self._budget.incomplete.discard(self)

    def release(self) -> None:
        """Returns all bytes to the budget; later calls of `grow` do nothing."""
        self.complete()
        self.shrink(0)
        self._released = True

    def _add(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._budget.num_bytes += num_bytes


def count_bytes(scope: Mapping[str, Any], num_bytes: int) -> None:
    """Counts memory that the application uses for a request, such as its decompressed body, until the request ends.

    Raises OverloadedError if the budget is exceeded. Does nothing if the server has no budget.
    """
    lease = scope.get("extensions", {}).get(LEASE)
    if lease is not None:
        lease.grow(num_bytes)


def mark_large(scope: Mapping[str, Any]) -> None:
    """Lets freed memory be returned to the operating system after a request, also if its body and reply are small."""
    lease = scope.get("extensions", {}).get(LEASE)
    if lease is not None:
        lease.is_large = True


def hold_bytes(scope: Mapping[str, Any], num_bytes: int) -> None:
    """Counts `num_bytes` for the reply that is encoded, at most what was counted for its request until now."""
    lease = scope.get("extensions", {}).get(LEASE)
    if lease is not None:
        lease.shrink(num_bytes)
