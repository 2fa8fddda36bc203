"""Listens; accepts the connections that came while the event loop rested, and refuses most of them without asyncio.

uvloop accepts one connection each time that it looks for events, and gives each a transport. Of clients with a
connection for each request, nearly all are refused under overload, so here a request with a known head gets its reply
from the socket itself. The sockets of all others are handed over to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial

from bei_core.errors import ConfigError
from bei_core.http.limits import MAX_UNCOUNTED_BYTES
from bei_core.http.server.connection import Connection
from bei_core.http.server.pool import Pool
from bei_core.http.server.sockets import name_of

_BACKLOG = 2048
# The reply waits for the end of the connection, which comes at once, so that both go out together: a fifth less time.
_WITH_THE_END = socket.MSG_DONTWAIT | getattr(socket, "MSG_MORE", 0)

_MOST = 64  # connections of a listener at a time, in 3 ms; the event loop accepts those that are left


async def listen(pool: Pool, sock: socket.socket) -> asyncio.Server:
    """Accepts the connections of a bound socket from now on. Raises ConfigError if another process listens on it."""
    loop, backlog = asyncio.get_running_loop(), max(_BACKLOG, pool.settings.max_concurrent_requests)
    create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
    try:
        server = await create(lambda: Connection(pool), sock=sock, backlog=backlog)
    except OSError as fault:
        raise ConfigError(f"another process has begun to listen on {name_of(sock)}: {fault.strerror}") from fault
    pool.after_rest.append(partial(accept_waiting, pool, sock))
    return server


def accept_waiting(pool: Pool, listener: socket.socket) -> None:
    """Accepts connections that wait on a listening socket, which does not block."""
    with contextlib.suppress(OSError):  # none waits, the server drains, or there are too many open files
        for _ in range(_MOST):
            sock, _ = listener.accept()
            data = _received(sock)
            if not _refuse(pool, sock, data):
                pool.hand_over(_connect(pool, sock, data))


def _received(sock: socket.socket) -> bytes:
    """Returns the first bytes on an accepted socket, so few that no connection has to pause reading for them."""
    try:
        return sock.recv(MAX_UNCOUNTED_BYTES, socket.MSG_DONTWAIT)
    except OSError:
        return b""


def _refuse(pool: Pool, sock: socket.socket, data: bytes) -> bool:
    """Refuses the request in `data` and closes its socket, if its head is known; returns whether it did."""
    repeated = pool.refused_heads.find(data)
    if repeated is None or repeated.keep_alive:
        return False
    reply = b"".join(pool.refusal_reply(repeated.refusal, keep_alive=False))
    with sock, contextlib.suppress(OSError):
        sock.send(reply, _WITH_THE_END)
    return True


async def _connect(pool: Pool, sock: socket.socket, data: bytes) -> None:
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(pool, data), sock)
    except OSError:  # the client has left
        sock.close()
