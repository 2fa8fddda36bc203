"""The routes that Truss's server lacks, added to its own application.

Truss's server has a fixed table: embeddings, predict, and no way to add to it. Its application is an ordinary FastAPI
one, though, and is there before a model is loaded. So one route is put behind all of its own, which takes what none of
them does, and one before them for embeddings, since Truss's way to the model costs as much again as the answer. Nothing
in Truss promises this: `add_routes` finds out whether it worked, and without it predict and embeddings still do.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

# What tells Truss's application from any other in the process.
_PREDICT = "/v1/models/{model_name}:predict"

_EMBEDDINGS = "/v1/embeddings"
_PROBE = "/health/live"  # needs no model and no event loop of its own


class TrussChangedError(Exception):
    """Truss's server is not made as `add_routes` expects; the text says how."""


class Added(BaseRoute):
    """The application's: POSTs to `path`, or without one every HTTP request that comes this far."""

    def __init__(self, app: ASGIApp, path: str | None = None) -> None:
        self._app = app
        self._path = path

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Full or none; none for a websocket."""
        if scope["type"] != "http":
            return Match.NONE, {}
        is_ours = self._path is None or (scope["method"] == "POST" and scope["path"] == self._path)
        return (Match.FULL if is_ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self._app(scope, receive, send)


def add_routes(app: ASGIApp) -> bool:
    """Whether Truss's server now answers with `app` where it has no route of its own; the log says if not."""
    try:
        routes = _truss_app().router.routes
        with _undone_on_failure(routes):
            trusss = [route for route in routes if not isinstance(route, Added)]  # ours are of a load that came before
            routes[:] = [Added(app, _EMBEDDINGS), *trusss, Added(app)]
            asyncio.run(_check(_truss_app()))
    except Exception as fault:  # whatever a future Truss does, the model must still load
        log.warning("this Truss server has only its own routes, predict and /v1/embeddings among them: %s", fault)
        return False
    return True


def _truss_app() -> Starlette:
    """Truss's application. Raises TrussChangedError unless there is exactly one."""
    found: list[Starlette] = [
        each for each in gc.get_objects() if issubclass(type(each), Starlette) and _is_trusss(each)
    ]
    if len(found) != 1:
        raise TrussChangedError(
            f"{len(found)} applications of the process have a route {_PREDICT}, where one was expected"
        )
    return found[0]


def _is_trusss(app: Starlette) -> bool:
    return any(isinstance(route, Route) and route.path == _PREDICT for route in app.router.routes)


@contextmanager
def _undone_on_failure(routes: list[BaseRoute]) -> Iterator[None]:
    """Puts the routes back as they were where the block raises."""
    before = list(routes)
    try:
        yield
    except BaseException:
        routes[:] = before
        raise


async def _check(truss: Starlette) -> None:
    """Asks Truss's application for one of the added routes. Raises TrussChangedError unless ours answers."""
    started: MutableMapping[str, Any] = {}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.update(message)

    await truss(_scope(), receive, send)
    if started.get("status") != 200 or b"x-request-id" not in dict(started.get("headers", ())):
        raise TrussChangedError(f"GET {_PROBE} is answered with {started.get('status')}")


def _scope() -> dict[str, Any]:
    """A request for `_PROBE`."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": _PROBE,
        "raw_path": _PROBE.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": None,
        "server": None,
    }
