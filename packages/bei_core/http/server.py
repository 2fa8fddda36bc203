"""`bei serve`: the application on uvicorn, from start to a drain that answers everything it accepted."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from socket import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bei_core.http.app import App, make_app
from bei_core.http.traces import Traces
from bei_core.serving.service import Service

log = logging.getLogger(__name__)

# How long idle connections stay open once no more are accepted: a request that is on its way on one is still answered.
_LINGER_S = 0.25

# How long a draining server waits for a client that has yet to send the rest of its request, or that reads nothing of
# its reply: such a client could keep the process from ending for ever.
_STUCK_S = 5.0

# How long the services, together, may take to run what they have accepted.
_CLOSE_S = 30.0

# Bytes of a request's head: more than any proxy adds, and little enough to hold for every connection.
_MAX_HEAD = 65_536

# An offer to go on in HTTP/2, as Java's client makes with its first request. llhttp takes the body of a request that
# offers an upgrade for the other protocol's bytes, so the offer, which a server may ignore, is made unreadable.
_UPGRADE = re.compile(rb"\r\nUpgrade:(?=[ \t]*h2c)", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 over httptools, for requests whose head is of a sane size and whatever else it offers."""

    def data_received(self, data: bytes) -> None:
        """More bytes of a connection."""
        head, end, body = data.partition(b"\r\n\r\n")
        super().data_received(_UPGRADE.sub(b"\r\nIgnored:", head) + end + body)

    def on_message_begin(self) -> None:
        """A request starts."""
        self._head_size = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Raises ValueError, which ends in a 400, where the head has grown too large."""
        self._head_size += len(name) + len(value)
        if self._head_size > _MAX_HEAD:
            raise ValueError(f"the head of the request is larger than {_MAX_HEAD} bytes")
        super().on_header(name, value)


class Server(uvicorn.Server):
    """uvicorn, except that a signal ends it with status 0 once everything accepted is answered."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends on SIGTERM and SIGINT; uvicorn's own raises them again, so that the process dies by the signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stops accepting, answers what is there or on its way, then closes."""
        log.info("draining: %d connections are open", len(self.server_state.connections))
        self._app.drain()
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LINGER_S)
        dropping = asyncio.create_task(self._drop_stuck())
        await super().shutdown(sockets)
        dropping.cancel()

    async def _drop_stuck(self) -> None:
        """Cuts the connections whose client neither finishes its request nor reads its reply."""
        seen: dict[Any, object] = {}
        while True:
            for connection in list(self.server_state.connections):
                if not isinstance(connection, HttpToolsProtocol) or connection.cycle is None or connection.pipeline:
                    continue
                cycle, state = connection.cycle, None  # None: it is our turn
                if cycle.response_complete:
                    state = (cycle, connection.transport.get_write_buffer_size())
                elif cycle.more_body and not cycle.response_started:
                    state = (cycle, 0)
                if state is not None and seen.get(connection) == state:
                    log.warning("dropped a client that kept the server from ending")
                    connection.transport.abort()
                seen[connection] = state
            await asyncio.sleep(_STUCK_S)


def serve(services: Sequence[Service], traces: Traces | None = None) -> None:
    """Serves until a signal ends it, then closes the services and sends the last traces."""
    app, asgi = make_app(*services, traces=traces)
    settings = app.service.settings
    config = uvicorn.Config(
        asgi,
        host=settings.hostname,
        port=settings.port,
        loop="uvloop",
        http=Protocol,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=max(2048, settings.max_concurrent_requests),
        timeout_keep_alive=75,  # above the load balancers' 60: it must be they who close an idle connection
        timeout_graceful_shutdown=None,
    )
    try:
        Server(config, app).run()
    finally:
        _close(services)
        if traces is not None:
            traces.close()
    log.info("drained; goodbye")


def _close(services: Sequence[Service]) -> None:
    until = time.monotonic() + _CLOSE_S
    for service in services:
        service.close(max(0.0, until - time.monotonic()))
