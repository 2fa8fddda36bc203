"""Cancels the task that answers a request when its client disconnects: the reply would not be read."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

# The key of a request's Watch among the extensions of its ASGI scope.
WATCH = "bei.watch"

# Seconds. `ReceivingWatch` does not watch shorter requests, because its task costs more than it saves for them.
_PATIENCE_S = 0.1


class Watch:
    """Cancels the task that answers a request when its client disconnects. `bei serve` calls `leave`."""

    task: asyncio.Task[None] | None = None  # None: there is nothing to cancel
    left: bool = False  # whether the client has disconnected, or the server has refused the rest of its request

    def leave(self) -> None:
        """Cancels the task, once."""
        if not self.left:
            self.left = True
            if self.task is not None:
                self.task.cancel()


class ReceivingWatch(Watch):
    """A watch for other servers: a task of its own waits for their message `http.disconnect`."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._receiver: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._start)

    def close(self) -> None:
        """Ends the watch."""
        self._timer.cancel()
        if self._receiver is not None:
            self._receiver.cancel()

    def _start(self) -> None:
        self._receiver = asyncio.ensure_future(self._receive())

    async def _receive(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.leave()
