"""The connections of a listener: limits their number, closes idle ones, and enforces their deadlines."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from random import getrandbits
from typing import Protocol, TypeAlias

from starlette.types import ASGIApp, Scope

from bei_core.config.settings import Settings
from bei_core.http.limits import (
    DRAIN_STALL_S,
    MAX_CHUNKED_BYTES,
    MAX_REFUSED_CONNECTIONS,
    OVERLOAD_S,
    BodyBudget,
    rest_s,
)
from bei_core.http.replies import Refusal, retry_lines
from bei_core.http.server.exchange import STATUS_LINES
from bei_core.http.server.refused_heads import RefusedHeads

log = logging.getLogger(__name__)

_NOTE_EVERY_S = 10.0
_FROM_THE_LINE = frozenset({"queue_wait", "retry_budget"})  # causes of refusals

# Under overload, how many requests begin in one turn of the event loop. A health check waits for such a turn or two.
_MAX_STARTED = 16

# From how many connections with much to discard more is read in one turn of the event loop, up to 256 kB each. Without
# a limit, 84 refused bodies of 32 MB at once held up a health check for 38 to 52 ms, now for 34 to 40.
_MAX_DISCARDING = 8

_Work: TypeAlias = Coroutine[None, None, None]


class Member(Protocol):
    """The methods of a connection that a pool calls."""

    deadline: float

    def expire(self) -> None:
        """Handles a passed deadline."""

    def hurry(self) -> None:
        """Closes an idle connection because the server drains; otherwise shortens the time to wait for the client."""

    def refuse(self, status: int, message: str, *, kind: str = ..., retry_after_s: int | None = None) -> None:
        """Replies with an error without the application, then closes the connection."""

    def abort(self) -> None:
        """Closes the connection at once."""

    def parse_chunks(self) -> int:
        """Parses buffered bytes of a chunked body; returns how many."""

    def discard(self) -> None:
        """Reads and discards more of what the client sends after the last reply."""


class Pool:
    """The open connections of one listener, and the application that answers them."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        budget: BodyBudget,
        max_connections: int,
        refused_early: Callable[[Scope], Refusal | None] = lambda scope: None,
    ) -> None:
        self.settings = settings
        self.refused_early = refused_early  # returns a refusal that needs no application, or None
        self.refused_heads = RefusedHeads()
        self.after_rest: list[Callable[[], None]] = []  # what accepts the connections that came meanwhile
        self.budget = budget
        self.is_draining = False
        self.stall_s = settings.send_timeout_s  # how long a client may read too little of its reply
        self.date = b""
        self.app = app
        self._max_connections = max_connections
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._connections: set[Member] = set()
        self._waiting: dict[Member, None] = {}  # connections without a request, the longest idle first
        self._tasks: set[asyncio.Task[None]] = set()  # references, so that running tasks are not garbage-collected
        self._handed_over: set[asyncio.Task[None]] = set()  # references, too
        self._later: tuple[deque[_Work], deque[_Work]] = deque(), deque()  # to start in the next turns: small, others
        self._chunked: dict[Member, None] = {}  # connections with buffered bytes of a chunked body, the oldest first
        self._parses = False  # whether these bytes will be parsed in the next turn of the event loop
        self._discarding: deque[Member] = deque()  # connections whose rest is discarded; they do not read now
        self._rest_s = rest_s(settings.max_queue_wait_s)
        self._rests = False  # whether the event loop is about to sleep
        self._has_work = False  # whether connections or requests came since the event loop was last about to sleep
        self._rests_until = -math.inf
        self._notes: Counter[str] = Counter()
        self._noted_at = -_NOTE_EVERY_S
        self._empty = asyncio.Event()
        self._sweeper = self._loop.create_task(self._sweep())
        self._set_date()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Member) -> None:
        """Adds a connection. If too many are open, closes the one that is idle for longest, else refuses this one."""
        self._connections.add(connection)
        self._has_work = True
        num_over = len(self._connections) - self._max_connections
        if num_over <= 0 or self._close_longest_idle():
            self._waiting[connection] = None
        elif num_over <= MAX_REFUSED_CONNECTIONS:
            connection.refuse(503, "too many connections are open; try again", kind="Overloaded", retry_after_s=1)
        else:
            self.note("too many connections are open to say so to each")
            connection.abort()

    def remove(self, connection: Member) -> None:
        """Removes a closed connection."""
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def begin(self, connection: Member) -> None:
        """Marks a connection as having a request in progress."""
        self._waiting.pop(connection, None)

    def start(self, work: _Work, *, is_small: bool) -> None:
        """Starts a task that answers a request.

        If requests are refused, the event loop rests after those that are accepted. They come in groups of a batch, and
        few of them start in one turn of the event loop, the small ones (health checks) first.
        """
        small, others = self._later
        is_first = not (small or others)
        if is_first and self.now() >= self._rests_until:
            return self._start(work, self._tasks)
        if is_first:
            self._has_work = True
            self._loop.call_soon(self._start_some)
        (small if is_small else others).append(work)
        return self._rest_soon()

    def _start_some(self) -> None:
        """Starts small requests, at most half of a turn's while others wait, and then these."""
        self._has_work = True
        small, others = self._later
        for number in range(min(_MAX_STARTED, len(small) + len(others))):
            is_small = small and (number < _MAX_STARTED // 2 or not others)
            self._start((small if is_small else others).popleft(), self._tasks)
        if small or others:
            self._loop.call_soon(self._start_some)

    def _start(self, work: _Work, tasks: set[asyncio.Task[None]]) -> None:
        task = self._loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def wait_for(self, connection: Member) -> None:
        """Marks a connection as idle."""
        self._waiting[connection] = None

    def hand_over(self, work: _Work) -> None:
        """Starts a task that gives an accepted socket a connection."""
        self._has_work = True
        self._start(work, self._handed_over)

    def parse_later(self, connection: Member) -> None:
        """Calls `parse_chunks` of the connection in a later turn of the event loop.

        In one turn, few bytes of all connections are parsed: with chunks of one byte, 64 kB of them take 5 ms.
        """
        self._chunked[connection] = None
        if not self._parses:
            self._parses = True
            self._loop.call_soon(self._parse_chunks)

    def discard_later(self, connection: Member) -> None:
        """Calls `discard` of the connection in a later turn of the event loop, of few connections in each."""
        self._discarding.append(connection)
        if len(self._discarding) == 1:
            self._loop.call_soon(self._discard_some)

    def refusal_reply(self, refusal: Refusal, *, keep_alive: bool) -> list[bytes]:
        """Counts a refusal, and returns the parts of the reply."""
        refusal.count(refusal.error)
        if refusal.error.cause in _FROM_THE_LINE:  # the engine has work for longer than the event loop rests
            self.refused()
        request_id = b"x-request-id: %b\r\n" % (refusal.request_id or f"{getrandbits(64):016x}").encode("latin-1")
        when = retry_lines(refusal.error.retry_after_s)
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        return [STATUS_LINES[429], self.date, refusal.headers, when, request_id, end, refusal.body]

    def refused(self) -> None:
        """Lets the event loop rest, now and after each request of the next moments; call it after a refusal."""
        self._rests_until = self.now() + OVERLOAD_S
        self._rest_soon()

    def note(self, what: str) -> None:
        """Counts a connection that the server has ended, by reason; the counts are logged together."""
        self._notes[what] += 1

    async def drain(self, on_its_way_s: float, timeout_s: float) -> int:
        """Closes each connection when its request is answered, and all remaining ones after `timeout_s`.

        Returns the number of requests without an answer; what they waited for is cancelled later.
        """
        self.is_draining = True
        self.refused_heads = RefusedHeads()  # from now on replies close their connections
        self.stall_s = min(self.stall_s, DRAIN_STALL_S)
        until = self.now() + timeout_s
        await asyncio.sleep(min(on_its_way_s, timeout_s))
        for connection in list(self._connections):
            connection.hurry()
        if self._connections:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), max(0.0, until - self.now()))
            except asyncio.TimeoutError:
                log.warning("drain_timeout_s is nearly over: closing %d connections", len(self))
        while any(self._later):
            self._start_some()  # so that they notice the end of their connections
        num_unanswered = len(self._tasks)
        for connection in list(self._connections):
            connection.abort()
        self._sweeper.cancel()
        self._log_notes()
        return num_unanswered

    def _discard_some(self) -> None:
        for _ in range(min(_MAX_DISCARDING, len(self._discarding))):
            self._discarding.popleft().discard()
        if self._discarding:
            self._loop.call_soon(self._discard_some)

    def _parse_chunks(self) -> None:
        num_bytes = 0
        try:
            for connection in list(self._chunked):
                del self._chunked[connection]
                num_bytes += connection.parse_chunks()
                if num_bytes >= MAX_CHUNKED_BYTES:
                    break
        finally:
            self._parses = bool(self._chunked)
            if self._parses:
                self._loop.call_soon(self._parse_chunks)

    def _close_longest_idle(self) -> bool:
        """Closes the connection that is idle for longest; returns False if there is no idle connection."""
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            return False
        self.note("closed as the longest idle of max_connections")
        self._waiting.pop(oldest)
        self._connections.discard(oldest)
        oldest.abort()
        return True

    def _rest_soon(self) -> None:
        """Lets the event loop sleep for a moment after it has handled all that has arrived."""
        if not self._rests:
            self._rests = True
            self._loop.call_soon(self._loop.call_soon, self._rest)  # not before uvloop has sent the replies

    def _rest(self) -> None:
        """Sleeps, unless connections or requests may wait: uvloop accepts one each time that it looks for events."""
        if self._has_work:
            self._has_work = False
            self._loop.call_soon(self._rest)
            return
        time.sleep(self._rest_s)
        self._rests = False
        for accept in self.after_rest:
            accept()

    async def _sweep(self) -> None:
        """Expires connections past their deadline, updates the Date header and logs notes, until cancelled."""
        settings = self.settings
        timeouts = (settings.header_timeout_s, settings.body_timeout_s, settings.send_timeout_s)
        interval = min(1.0, *(timeout / 4 for timeout in timeouts))
        while True:
            await asyncio.sleep(interval)
            self._set_date()
            now = self.now()
            for connection in [connection for connection in self._connections if connection.deadline <= now]:
                try:
                    connection.expire()
                except Exception:  # without this task, no connection would ever expire
                    log.exception("this is a bug: a connection past its deadline could not be ended in order")
                    connection.abort()
            if self._notes and now >= self._noted_at + _NOTE_EVERY_S:
                self._log_notes()

    def _set_date(self) -> None:
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()

    def _log_notes(self) -> None:
        for what, count in self._notes.most_common():
            log.warning("ended %d connections: %s", count, what)
        self._notes.clear()
        self._noted_at = self.now()
