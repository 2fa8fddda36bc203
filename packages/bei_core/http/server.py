"""`bei serve`: the application on uvicorn, from start to a drain that answers everything it accepted."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bei_core.http.app import App, make_app
from bei_core.service import Service

log = logging.getLogger(__name__)

# How long idle connections stay open once no more are accepted: a request that is on its way on one is still answered.
_LINGER_S = 0.25

# How long a draining server waits for a client that has yet to send the rest of its request, or that reads nothing of
# its reply: such a client could keep the process from ending for ever.
_STUCK_S = 5.0


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
        self._app.draining = True
        self._app.service.drain()
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


def serve(service: Service) -> None:
    """Serves until a signal ends it, then closes the service."""
    app, asgi = make_app(service)
    settings = service.settings
    config = uvicorn.Config(
        asgi,
        host=settings.hostname,
        port=settings.port,
        loop="uvloop",
        http="httptools",
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
        service.close()
    log.info("drained; goodbye")
