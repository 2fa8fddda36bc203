"""Adds all routes of BEI to Truss's own server.

Truss's server has a fixed table of routes, embeddings and predict among them, and offers no way to add one. But it is
an ordinary FastAPI application, which exists before a model is loaded. `add_routes` adds two routes to it: the last
route takes all requests for which Truss has no route; the first one takes embeddings, because Truss's own code around a
request takes as much time as the model. Truss does not guarantee that this works, so `add_routes` checks it. If it
fails, predict and embeddings still work through Truss's own routes.
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

# The route by which Truss's application is recognised among all applications in the process.
_PREDICT = "/v1/models/{model_name}:predict"

_EMBEDDINGS = "/v1/embeddings"
_PROBE = "/health/live"  # needs no model


class TrussChangedError(Exception):
    """Truss's server differs from what `add_routes` expects; the text says how."""


class Added(BaseRoute):
    """A route to BEI's application, for POST requests to `path`, or for every HTTP request if there is no path."""

    def __init__(self, app: ASGIApp, path: str | None = None) -> None:
        self._app = app
        self._path = path

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """A full match or no match. A websocket never matches."""
        if scope["type"] != "http":
            return Match.NONE, {}
        is_ours = self._path is None or (scope["method"] == "POST" and scope["path"] == self._path)
        return (Match.FULL if is_ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to BEI's application."""
        await self._app(scope, receive, send)


def add_routes(app: ASGIApp) -> bool:
    """Add the routes of `app` to Truss's server; returns False, after a warning, if that failed."""
    try:
        routes = _truss_app().router.routes
        with _restored_on_error(routes):
            own = [route for route in routes if not isinstance(route, Added)]  # without those of an earlier load()
            routes[:] = [Added(app, _EMBEDDINGS), *own, Added(app)]
            asyncio.run(_check(_truss_app()))
    except Exception as fault:  # the model must also load with a later version of Truss
        log.warning("this Truss server has only its own routes, such as predict and /v1/embeddings: %s", fault)
        return False
    return True


def _truss_app() -> Starlette:
    """Truss's application. Raises TrussChangedError unless the process has exactly one."""
    found: list[Starlette] = [
        each for each in gc.get_objects() if issubclass(type(each), Starlette) and _is_truss(each)
    ]
    if len(found) != 1:
        raise TrussChangedError(f"{len(found)} applications in the process have the route {_PREDICT}; expected one")
    return found[0]


def _is_truss(app: Starlette) -> bool:
    return any(isinstance(route, Route) and route.path == _PREDICT for route in app.router.routes)


@contextmanager
def _restored_on_error(routes: list[BaseRoute]) -> Iterator[None]:
    """Restore the routes if the block raises."""
    before = list(routes)
    try:
        yield
    except BaseException:
        routes[:] = before
        raise


async def _check(truss: Starlette) -> None:
    """Request one of the added routes. Raises TrussChangedError unless BEI's application answers."""
    started: MutableMapping[str, Any] = {}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.update(message)

    await truss(_scope(), receive, send)
    if started.get("status") != 200 or b"x-request-id" not in dict(started.get("headers", ())):
        raise TrussChangedError(f"GET {_PROBE} was answered with {started.get('status')}")


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
