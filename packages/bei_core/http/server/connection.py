"""A connection: handles one request after the other, within limits of bytes and time.

While a request is answered, later requests of the client wait as unparsed bytes; beyond a limit, they stay in the
socket buffers.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from typing import Any

from bei_core.errors import OverloadedError
from bei_core.http.disconnects import WATCH
from bei_core.http.limits import (
    LEASE,
    LINGER_S,
    MAX_UNCOUNTED_BYTES,
    MAX_UNPARSED_BYTES,
    MAX_UNREAD_BODY_BYTES,
    MIN_READ_BYTES_PER_S,
    BodyLease,
)
from bei_core.http.replies import Refusal
from bei_core.http.server.exchange import Exchange, Refused, error_reply, scope_of
from bei_core.http.server.parser import HttpError, RequestParser
from bei_core.http.server.pool import Pool
from bei_core.http.server.unread import Unread

log = logging.getLogger(__name__)


class Phase(Enum):
    """What a connection waits for; each phase has its own deadline."""

    IDLE = "the first byte of a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    REPLY = "the application, or the client to read the reply"
    CLOSING = "the client to read what is left, or to close"


class Connection(asyncio.Protocol):
    """The connection of one client, from open to close."""

    def __init__(self, pool: Pool, received: bytes = b"") -> None:
        """`received` are the first bytes of the client, which were read before the connection was made."""
        self.phase = Phase.IDLE
        self.deadline = math.inf  # seconds on the event loop's clock
        self._pool = pool
        self._settings = pool.settings
        self._transport: asyncio.Transport
        self._exchange: Exchange | Refused | None = None
        self._unparsed = b""
        self._received = received
        self._head: BodyLease | None = None  # of a large head that is not handed over to an exchange
        self._is_paused = False  # whether reading from the socket is paused
        self._writable = asyncio.Event()
        self._writable.set()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Adds the new connection to the pool, which refuses it if too many are open."""
        self._transport = transport  # type: ignore[assignment]
        self._transport.set_write_buffer_limits(MAX_UNCOUNTED_BYTES)
        self._wait_in(Phase.IDLE)
        self._pool.add(self)
        if self._received:
            received, self._received = self._received, b""
            self.data_received(received)

    def data_received(self, data: bytes) -> None:
        """Parses received bytes; discards them if the connection is closing."""
        is_ready = self.phase is Phase.IDLE and not self._unparsed and self._writable.is_set()
        if is_ready and (repeated := self._pool.refused_heads.find(data)) is not None:
            self.write(self._pool.refusal_reply(repeated.refusal, keep_alive=repeated.keep_alive))
            self._pool.begin(self)
            self._wait_for_request() if repeated.keep_alive else self.close()
        elif self.phase is not Phase.CLOSING:
            self._unparsed = self._unparsed + data if self._unparsed else data
            self._parse()
        elif len(data) > MAX_UNREAD_BODY_BYTES and not self._transport.is_closing():
            self._transport.pause_reading()
            self._pool.discard_later(self)

    def eof_received(self) -> None:
        """Handles the end of the client's data as a disconnect."""
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cleans up after the connection is closed."""
        self._leave()
        self._pool.remove(self)
        if "_unread" in self.__dict__:
            self._unread.close()
        self._forget_head()

    def pause_writing(self) -> None:
        """Makes the application wait until the client has read more; starts the timeout for a stalled client.

        From now on the bytes that wait to be sent count in the budget.
        """
        self._writable.clear()
        if self.phase in _TIMEOUT_WHEN_READ:
            self._enter(self.phase, self._pool.stall_s)
        self._unread.begin()

    def resume_writing(self) -> None:
        """Lets the application continue, because the client has read enough; ends the timeout for a stalled client."""
        self._unread.end()
        self._writable.set()
        if self.phase in _TIMEOUT_WHEN_READ:
            self._wait_in(self.phase)
        if self._unparsed:
            self._parse()

    # what the exchange calls

    @property
    def date(self) -> bytes:
        """The Date header of replies, as a whole line."""
        return self._pool.date

    @property
    def is_draining(self) -> bool:
        """Whether the server is draining, so that this reply is the last one."""
        return self._pool.is_draining

    @property
    def writable(self) -> asyncio.Event:
        """An event that is set while bytes may be written; also set once the client has disconnected."""
        return self._writable

    def write(self, parts: Sequence[bytes]) -> None:
        """Sends bytes; does nothing if the connection is closed."""
        if not self._transport.is_closing():
            self._transport.writelines(parts)

    def took_body(self) -> None:
        """Resumes reading after the application has taken the buffered bytes of the body."""
        if self._is_paused:
            self._pause_or_resume()

    def replied(self) -> None:
        """Handles a complete reply: parses the next request if there is one."""
        if self.phase is Phase.REPLY:
            self._end_exchange()
        if self._unparsed or self._is_paused:
            self._parse()

    def failed(self) -> None:
        """Replies 500 after the application has failed."""
        self.refuse(500, "internal error; see the server's log", kind="Backend")

    def abort(self) -> None:
        """Closes the connection at once."""
        self._transport.abort()

    # what the pool calls

    def parse_chunks(self) -> int:
        """Parses buffered bytes of a chunked body; returns how many."""
        num_bytes = len(self._unparsed)
        self._parse(takes_chunks=True)
        return num_bytes - len(self._unparsed)

    def discard(self) -> None:
        """Reads and discards more of what the client sends after the last reply."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def expire(self) -> None:
        """Handles a passed deadline: closes the connection or replies 408, according to the phase."""
        if self.phase is Phase.IDLE and self._writable.is_set():
            self.close()
        elif self.phase is Phase.HEAD:
            limit = self._settings.header_timeout_s
            self.refuse(408, f"the head of the request did not come within {limit:g} s (header_timeout_s)")
        elif self.phase is Phase.BODY:
            limit = self._settings.body_timeout_s
            self.refuse(408, f"the body of the request did not come within {limit:g} s (body_timeout_s)")
        else:
            self._abort_unless_read()

    def hurry(self) -> None:
        """Closes an idle connection because the server drains; otherwise shortens the time to wait for the client."""
        if self.phase is Phase.IDLE:
            self.close()
        elif self.deadline < math.inf:
            self.deadline = min(self.deadline, self._pool.now() + self._pool.stall_s)

    def close(self) -> None:
        """Closes the connection after the remaining bytes are sent."""
        self._transport.close()
        self._enter(Phase.CLOSING, self._pool.stall_s)

    def refuse(self, status: int, message: str, *, kind: str = "Validation", retry_after_s: int | None = None) -> None:
        """Replies with an error without the application, then closes the connection, unless that has begun already."""
        if self.phase is Phase.CLOSING:
            return None
        exchange, is_late = self._exchange, False
        if exchange is not None:
            is_late = exchange.is_started
            exchange.leave()
            if is_late and not exchange.is_replied:
                return self.abort()
        self._pool.note(f"{status}: {message}")
        if not is_late:
            self.write([error_reply(status, message, kind, retry_after_s, self._pool.date)])
        self._linger()
        return None

    # the rest; a connection whose only request is refused by its bytes needs no parser and no addresses

    @cached_property
    def _parser(self) -> RequestParser:
        return RequestParser()

    @cached_property
    def _unread(self) -> Unread:
        return Unread(self._transport, self._pool.budget, self._make_way)

    @cached_property
    def _addresses(self) -> tuple[tuple[Any, ...] | None, ...]:
        """The host and port of the server and of the client, for the ASGI scope."""
        names = (self._transport.get_extra_info(key) for key in ("sockname", "peername"))
        return tuple(name[:2] if isinstance(name, tuple) else None for name in names)  # None for a unix socket

    def _enter(self, phase: Phase, timeout_s: float) -> None:
        self.phase, self.deadline = phase, self._pool.now() + timeout_s

    def _wait_in(self, phase: Phase) -> None:
        """Enters IDLE or REPLY; uses the shorter timeout for a stalled client if it still has to read."""
        timeout_s = self._settings.keep_alive_timeout_s if phase is Phase.IDLE else math.inf
        self._enter(phase, timeout_s if self._writable.is_set() else self._pool.stall_s)

    def _parse(self, *, takes_chunks: bool = False) -> None:
        """Parses the received bytes up to the end of a request or up to a chunked body, or all of them.

        With `takes_chunks`, parses at most 64 kB of a chunked body, too; otherwise the pool calls `parse_chunks` later.
        """
        data, at, self._unparsed = self._unparsed, 0, b""
        while at < len(data) and self.phase not in _TAKES_NOTHING:
            if self.phase is Phase.IDLE:
                if not self._writable.is_set():
                    break  # the client must read the replies to its earlier requests first
                self._enter(Phase.HEAD, self._settings.header_timeout_s)
            if self._parser.is_chunked and not takes_chunks:
                self._pool.parse_later(self)
                break
            since, takes_chunks = at, False
            try:
                at = self._parser.feed(data, at)
                if at == since:
                    break
                self._advance()
            except HttpError as fault:
                self.refuse(fault.status, fault.message, kind=fault.kind)
            except OverloadedError as fault:
                self.refuse(429, fault.message, kind=fault.kind, retry_after_s=fault.retry_after_s)
            except Exception:  # asyncio would close the connection without a reply
                log.exception("this is a bug: a request failed before the application began")
                self.failed()
        self._unparsed = b"" if self.phase is Phase.CLOSING else data[at:]
        self._pause_or_resume()

    def _advance(self) -> None:
        """Passes on what the parser has found: a head, parts of a body, an end. Raises HttpError, OverloadedError."""
        if self._exchange is None:
            if self._parser.num_bytes > MAX_UNCOUNTED_BYTES:
                self._count_head()
            if not self._parser.has_head:
                return
            self._exchange = self._begin_exchange()
        self._exchange.add_body(self._parser.parts)
        if self._parser.has_end:
            self._exchange.complete()
            if self._exchange.is_replied:
                self._end_exchange()
            else:
                self._wait_in(Phase.REPLY)

    def _count_head(self) -> None:
        """Counts a large head in the budget, from now on until its request ends. Raises OverloadedError."""
        self._head = self._head or BodyLease(self._pool.budget, self._refuse_for_another)
        self._head.grow(self._parser.num_bytes - self._head.num_bytes)

    def _forget_head(self) -> None:
        self._release_head()
        if (parser := self.__dict__.pop("_parser", None)) is not None:
            parser.close()

    def _release_head(self) -> None:
        if self._head is not None:
            self._head.release()
            self._head = None

    def _begin_exchange(self) -> Exchange | Refused:
        """Starts the application on a request whose head is complete, or refuses the request. Raises HttpError."""
        scope = scope_of(self._parser, *self._addresses)
        self._enter(Phase.BODY, self._settings.body_timeout_s)
        self._pool.begin(self)
        parser, head, self._head = self._parser, self._head, None
        if (refusal := self._pool.refused_early(scope)) is not None:
            refused = self._refuse_early(refusal)
            if head is not None:
                parser.forget_head()
                head.release()
            return refused
        lease = head or BodyLease(self._pool.budget, self._refuse_for_another)
        if head is not None:
            parser.forget_head()
        exchange = Exchange(self, scope, lease, keep_alive=parser.keep_alive, expects_continue=parser.expects_continue)
        scope["extensions"] = {LEASE: lease, WATCH: exchange.watch}
        self._pool.start(exchange.run(self._pool.app), is_small=scope["method"] in {"GET", "HEAD"})
        return exchange

    def _refuse_early(self, refusal: Refusal) -> Refused:
        """Sends a refusal. The connection stays open, unless the client may leave out the body."""
        keep_alive = self._parser.keep_alive and not (self._parser.expects_continue or self._pool.is_draining)
        self.write(self._pool.refusal_reply(refusal, keep_alive=keep_alive))
        if not (refusal.request_id or self._parser.expects_continue):
            self._pool.refused_heads.add(self._parser.head, refusal, keep_alive=keep_alive)
        return Refused(keep_alive=keep_alive)

    def _end_exchange(self) -> None:
        """Waits for the next request after a complete request and reply, or closes the connection."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or not exchange.keep_alive or self._pool.is_draining:
            return self.close()
        return self._wait_for_request()

    def _wait_for_request(self) -> None:
        self._wait_in(Phase.IDLE)
        self._pool.wait_for(self)

    def _refuse_for_another(self) -> None:
        """Replies 429 to a request whose body is incomplete, to free memory for smaller requests."""
        error = self._pool.budget.error()
        self.refuse(429, error.message, kind=error.kind, retry_after_s=error.retry_after_s)

    def _make_way(self) -> None:
        """Closes the connection at once and returns its bytes to the budget, because other requests need them."""
        self._pool.note(
            "the client has not read its reply, and there is no memory to keep it (max_body_bytes_in_flight)"
        )
        if isinstance(self._exchange, Exchange):
            self._exchange.lease.release()
        self._unread.close()
        self.abort()

    def _pause_or_resume(self) -> None:
        """Pauses reading from the socket while enough bytes are buffered, and resumes it afterwards."""
        num_unread = self._exchange.num_unread if self._exchange is not None else 0
        is_full = len(self._unparsed) > MAX_UNPARSED_BYTES or num_unread > MAX_UNREAD_BODY_BYTES
        if is_full is not self._is_paused and not self._transport.is_closing():
            self._is_paused = is_full
            (self._transport.pause_reading if is_full else self._transport.resume_reading)()

    def _linger(self) -> None:
        """Closes the sending side, and keeps the connection for LINGER_S so that the client can read the reply."""
        self._enter(Phase.CLOSING, LINGER_S)
        self._unparsed = b""
        self._forget_head()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._pause_or_resume()

    def _leave(self) -> None:
        """Ends the exchange and the phase, because the client has disconnected."""
        self._enter(Phase.CLOSING, self._pool.stall_s)
        self._release_head()
        self._writable.set()
        if self._exchange is not None:
            self._exchange.leave()

    def _abort_unless_read(self) -> None:
        """Closes at once if the client has read too little of the reply since the last check."""
        if self._transport.get_write_buffer_size():
            if self._unread.is_read(self._pool.now()):
                self.deadline = self._pool.now() + self._pool.stall_s
                return
            self._pool.note(f"the client reads less than {MIN_READ_BYTES_PER_S} bytes of its reply a second")
        self.abort()


_TAKES_NOTHING = frozenset({Phase.REPLY, Phase.CLOSING})
_TIMEOUT_WHEN_READ = frozenset({Phase.REPLY, Phase.IDLE})  # phases with another timeout while the client must read
