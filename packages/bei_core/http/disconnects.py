"""Cancels the task that answers a request when its client disconnects, because nobody would read the reply."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

# The key of a request's Watch among the extensions of its ASGI scope.
WATCH = "bei.watch"

# Seconds. A shorter request is not watched where that takes a task: to watch it would cost more than it saves.
_PATIENCE_S = 0.1


class Watch:
    """What to cancel when the client of a request disconnects. `bei serve` calls `leave`."""

    task: asyncio.Task[None] | None = None  # None: the request needs no cancelling, now or any more
    left: bool = False  # the client has disconnected, and the task is cancelled for that reason

    def leave(self) -> None:
        """Cancels the task, once."""
        if self.task is not None and not self.left:
            self.left = True
            self.task.cancel()


class ReceivingWatch(Watch):
    """A watch for other servers: after a moment, a task of its own waits for their message `http.disconnect`."""

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
