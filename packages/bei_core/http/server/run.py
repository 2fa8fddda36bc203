"""Runs `bei serve` from the first connection to shutdown, which answers all accepted requests."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import uvloop
from starlette.types import ASGIApp

from bei_core.config.settings import Settings
from bei_core.errors import EngineCrashedError
from bei_core.http.app import App, make_app
from bei_core.http.limits import DRAIN_SHARE, MAX_HEALTH_CONNECTIONS, ON_ITS_WAY_S
from bei_core.http.memory import limit_collections, open_budget
from bei_core.http.server.arrivals import listen
from bei_core.http.server.pool import Pool
from bei_core.http.server.probes import only_probes
from bei_core.http.server.sockets import Sockets, max_connections, name_of
from bei_core.http.traces import Traces
from bei_core.serving.service import Service
from bei_core.text.workers import start_all

log = logging.getLogger(__name__)

# Threads for large bodies and replies. More threads would compete with the event loop for the GIL.
_NUM_THREADS = 2

# How long, in seconds, a thread that runs Python code keeps the GIL after another thread has asked for it. In each turn
# the event loop asks several times: with Python's 5 ms, a turn took 60 ms while a thread decoded a large body.
_SWITCH_S = 0.0025

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# The longest shutdown after an engine thread has crashed, so that clients still get error replies.
_CRASH_S = 3.0


def serve(services: Sequence[Service], sockets: Sockets, traces: Traces | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then closes the services and sends the last traces.

    At most `drain_timeout_s` after the signal, the process ends with status 0, even if requests are unanswered. A
    second signal ends it at once. Raises ConfigError if another process has begun to listen on an address after `bind`,
    and EngineCrashedError if an engine thread has crashed, so that the supervisor restarts the process.
    """
    app, asgi = make_app(*services, traces=traces)
    server = _Server(app, asgi, sockets)
    limit_collections()
    sys.setswitchinterval(_SWITCH_S)
    try:
        uvloop.run(server.run(), loop_factory=_Loop)
    finally:
        ended = [service.close(server.time_left()) for service in services]
        if traces is not None:
            traces.close()
    if server.crash is not None:
        raise EngineCrashedError(f"{server.crash}; this process ends, to be started again")
    if server.num_unanswered:
        log.warning("ended with %d requests unanswered", server.num_unanswered)
    else:
        log.info("drained; goodbye")
    if not all(ended):  # the native code of an engine that hangs could stop Python at its end
        _exit(0)


class _Loop(uvloop.Loop):
    """An event loop that starts no thread when it is closed."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Leaves its threads to the end of the process; uvloop starts one that waits for them."""


class _Server:
    """The listeners of one application, and their shutdown."""

    def __init__(self, app: App, asgi: ASGIApp, sockets: Sockets) -> None:
        self._app = app
        self._asgi = asgi
        self._settings: Settings = app.service.settings
        self._sockets = sockets
        self._ends_at: float | None = None  # on time.monotonic's clock
        self._ends = queue.SimpleQueue[tuple[float, float, int]]()  # when to end the process, its delay and status
        self._end_s: float = self._settings.drain_timeout_s  # the longest shutdown, in seconds
        self.num_unanswered = 0  # requests, at the end of the drain
        self.crash: str | None = None  # the reason if an engine thread has crashed

    def time_left(self) -> float:
        """Returns the seconds until the process must end."""
        ends_at = self._ends_at or time.monotonic() + self._settings.drain_timeout_s
        return max(0.0, ends_at - time.monotonic())

    async def run(self) -> None:
        """Serves until a signal arrives or an engine thread crashes; then drains."""
        settings, stop = self._settings, self._end_on_signals()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_started_pool())
        for service in self._app.services:
            service.crashed.add_done_callback(partial(self._end_on_crash, stop, loop))
        budget = open_budget(settings.max_body_bytes_in_flight)
        early = () if settings.cors_allow_origin else (self._app.refused_early,)  # these replies have no CORS headers
        pool = Pool(self._asgi, settings, budget, max_connections(settings), *early)
        probes = Pool(only_probes(self._asgi), settings, budget, MAX_HEALTH_CONNECTIONS)
        for sock in self._sockets.health:
            await listen(probes, sock)
            log.info("health checks and metrics on %s", name_of(sock))
        listeners = [await listen(pool, sock) for sock in self._sockets.main]
        for sock in self._sockets.main:
            log.info("listening on %s", name_of(sock))
        await stop.wait()
        log.info(
            "draining: %d connections are open; the process ends in %g s at the latest, or at once on a second signal",
            *(len(pool), self._end_s),
        )
        self._app.drain()
        self._sockets.unlink()
        for listener in listeners:
            listener.close()
        self.num_unanswered = await pool.drain(ON_ITS_WAY_S, DRAIN_SHARE * self._end_s)
        self._app.cut_off = self.num_unanswered > 0
        await probes.drain(0.0, ON_ITS_WAY_S)

    def _end_on_signals(self) -> asyncio.Event:
        """Returns an event that is set on the first SIGTERM or SIGINT; a second signal ends the process at once.

        Uses the `signal` module instead of asyncio's handlers, so that the timeout starts even if the event loop is
        busy.
        """
        stop, loop, seconds = asyncio.Event(), asyncio.get_running_loop(), self._settings.drain_timeout_s
        # Started now, because under a limit of threads none may start when the signal comes.
        threading.Thread(target=self._end_in_time, name="bei-end", daemon=True).start()

        def handle(_number: int, _frame: object) -> None:
            for number in _SIGNALS:  # Python's handlers have to wait for the main thread, the default action does not
                signal.signal(number, _end_by if os.getpid() == 1 else signal.SIG_DFL)
            self._end_within(seconds, 0)
            with suppress(RuntimeError):  # the event loop is closed: the drain is over
                loop.call_soon_threadsafe(stop.set)

        for number in _SIGNALS:
            signal.signal(number, handle)
        return stop

    def _end_on_crash(self, stop: asyncio.Event, loop: asyncio.AbstractEventLoop, crashed: Future[str]) -> None:
        self.crash, self._end_s = crashed.result(), min(_CRASH_S, self._settings.drain_timeout_s)
        self._end_within(self._end_s, 1)
        loop.call_soon_threadsafe(stop.set)

    def _end_within(self, seconds: float, status: int) -> None:
        """Ends the process with this status after `seconds`, even if requests are unanswered."""
        self._ends_at = time.monotonic() + seconds
        self._ends.put((self._ends_at, seconds, status))

    def _end_in_time(self) -> None:
        """Waits for calls of `_end_within`, and ends the process at the earliest of their times."""
        calls = [self._ends.get()]
        while True:
            ends_at, seconds, status = min(calls)
            try:
                left_s = max(0.0, ends_at - time.monotonic())
                calls.append(self._ends.get(timeout=min(left_s, threading.TIMEOUT_MAX)))
            except queue.Empty:
                _end_now(seconds, status)


def _started_pool() -> ThreadPoolExecutor:
    """Returns the threads for large bodies and replies, all started. Raises StartError."""
    pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="bei-http")
    start_all(pool, _NUM_THREADS)
    return pool


def _end_by(number: int, _frame: object) -> None:
    """Ends PID 1, for which Linux ignores a signal without a handler, with the status that shells show for the signal.

    Any other process ends by the signal itself.
    """
    os._exit(128 + number)


def _end_now(seconds: float, status: int) -> None:
    if status == 0:
        log.warning("drain_timeout_s = %g is over: ending with work left", seconds)
    _exit(status)


def _exit(status: int) -> None:
    logging.shutdown()
    os._exit(status)
