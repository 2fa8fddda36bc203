"""The ASGI application: finds the route, reads the body, maps every error to its reply."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bei_core.errors import (
    ConfigError,
    EngineError,
    MethodNotAllowedError,
    NotFoundError,
    PayloadTooLargeError,
    RequestError,
    UnauthorizedError,
    ValidationError,
)
from bei_core.http import openapi
from bei_core.http.negotiation import inflated
from bei_core.http.responses import error_response, finish, request_id
from bei_core.http.routes import BY_SHAPE, ROUTES, Call, Route
from bei_core.http.shapes import default_path, path_of
from bei_core.http.traces import Traces
from bei_core.metrics import Timings
from bei_core.serving.queue import HEAD_START_S
from bei_core.serving.service import Service
from bei_core.storage.drivers import redact

log = logging.getLogger(__name__)

# A request answered sooner than this is not watched for a caller who leaves: the watch would cost more than the work.
_PATIENCE_S = 0.1

_GONE = 499  # nginx's "client closed request": logged, never received


class _Chooses(msgspec.Struct):
    """The one field that is read before it is known which model will read the rest."""

    model: str | None = None


_NO_CHOICE = frozenset({None, "", "not-required"})  # the last is what Baseten's clients send where they must


class App:
    """The routes of one or several services, as an ASGI application; `respond` serves another server's Request."""

    def __init__(self, *services: Service, traces: Traces | None = None) -> None:
        self.services = services
        self.service = services[0]  # the one whose settings and metrics are the server's
        self.draining = False  # replies then tell the client to close its connection
        self._traces = traces
        self._by_name = _by_name(services)
        self._routes: dict[tuple[str, str], Route] = {(route.method, route.path): route for route in ROUTES}
        self._paths = {route.path for route in ROUTES} | openapi.PATHS | BY_SHAPE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI request."""
        if scope["type"] != "http":
            return
        request, method, path = Request(scope, receive), scope["method"], scope["path"]
        by_shape = method == "POST" and path in BY_SHAPE
        response = await (self.respond_by_shape(request) if by_shape else self.respond(request, method, path))
        if self.draining:
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    async def respond(self, request: Request, method: str, path: str, body: bytes | None = None) -> Response:
        """The reply of a route, `body` being the request's if it is read. Raises only if the server cancels it."""
        route = self._routes.get(("GET" if method == "HEAD" else method, path))
        timings, error = Timings(), None
        try:
            response = await self._answer(request, method, path, route, body, timings)
            await finish(response, request)
        except RequestError as fault:
            error, response = fault, self._refuse(fault, route, path)
        except ClientDisconnect:
            response = self._left()
        except asyncio.CancelledError:
            if not getattr(request.state, "left", False):
                raise
            response = self._left()
        except Exception:
            log.exception("this is a bug: %s %s failed", method, path)
            error = EngineError("internal error; see the server's log")
            response = self._refuse(error, route, path)
        return self._done(request, method, route, response, timings, error)

    async def respond_by_shape(self, request: Request) -> Response:
        """The reply of the POST route that takes such a body; raises as `respond` does."""
        default, timings, error = self._default(self.service), Timings(), None
        try:
            body = await self._body(request)
            if len(self.services) > 1:
                default = self._default(self._named(_model_of(body)) or self.service)
            path = path_of(body, default.path)
        except RequestError as fault:
            error, response = fault, self._refuse(fault, default, default.path)
        except ClientDisconnect:
            response = self._left()
        else:
            return await self.respond(request, "POST", path, body)
        return self._done(request, "POST", None, response, timings, error)

    async def check(self) -> None:
        """Raises UnhealthyError unless every model answers."""
        for service in self.services:
            await service.check()

    def drain(self) -> None:
        """From here on health checks get 503, and replies end their connections."""
        self.draining = True
        for service in self.services:
            service.drain()

    def _default(self, service: Service) -> Route:
        """What a body of no other shape is for."""
        return self._routes["POST", default_path(service)]

    def _chosen(self, request: Request, route: Route, body: bytes) -> Service:
        """The model that the request names, else the first that can do what the route asks. Raises NotFoundError."""
        name = _model_of(body) if route.method == "POST" else request.query_params.get("model")
        suited = (service for service in self.services if route.suits(service))
        return self._named(name) or next(suited, self.service)

    def _named(self, name: str | None) -> Service | None:
        """The model of that name; None where it names none. Raises NotFoundError for one that is not served."""
        if name in _NO_CHOICE or name is None:
            return None
        if name not in self._by_name:
            known = ", ".join(service.name for service in self.services)
            raise NotFoundError(f"there is no model {name!r}; known are {known}", param="model")
        return self._by_name[name]

    async def _answer(
        self, request: Request, method: str, path: str, route: Route | None, body: bytes | None, timings: Timings
    ) -> Response:
        if route is None:
            return self._unrouted(method, path)
        self._authorize(request, route)
        if body is None:
            body = await self._body(request) if method == "POST" else b""
        service = self.service if len(self.services) == 1 else self._chosen(request, route, body)
        timings.model = service.name
        call = Call(service, self.services, request, body, timings, _deadline(request), _priority(request))
        with _watched(request):
            response = await route.handler(call)
        if timings.num_inputs:
            self.service.metrics.succeeded(timings)
        return response

    def _done(
        self,
        request: Request,
        method: str,
        route: Route | None,
        response: Response,
        timings: Timings,
        error: RequestError | None,
    ) -> Response:
        """The reply, which has its id and is in the traces; probes and scrapes would only drown the others there."""
        response.headers["x-request-id"] = request_id(request)
        if self._traces is not None and (route is None or not route.public):
            self._traces.record(request, method, route, response.status_code, timings, error)
        return response

    def _unrouted(self, method: str, path: str) -> Response:
        if method in {"GET", "HEAD"} and path in openapi.PATHS:
            return openapi.respond(path)
        if path in self._paths:
            methods = ", ".join(sorted(known for known, place in self._routes if place == path)) or (
                "POST" if path in BY_SHAPE else "GET"
            )
            raise MethodNotAllowedError(f"{path} is served by {methods}, not by {method}", allow=methods)
        raise NotFoundError(f"there is no {path}; known are {', '.join(sorted(self._paths))}")

    def _refuse(self, error: RequestError, route: Route | None, path: str) -> Response:
        self.service.metrics.failed(error.kind.lower())
        if route is None:
            return error_response(error, openai_shape=path.startswith("/v"))
        return error_response(error, openai_shape=route.openai, inputs=route.inputs)

    def _left(self) -> Response:
        self.service.metrics.cancelled()
        return Response(status_code=_GONE)

    def _authorize(self, request: Request, route: Route) -> None:
        """Raises UnauthorizedError unless the key is right: `Authorization: Bearer KEY`, or Baseten's `Api-Key KEY`."""
        key = self.service.settings.api_key
        if key is None or route.public:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() not in {"bearer", "api-key"} or not hmac.compare_digest(given.encode(), key.encode()):
            raise UnauthorizedError("the API key is missing or wrong; send `Authorization: Bearer KEY`")

    async def _body(self, request: Request) -> bytes:
        """The whole body. Raises PayloadTooLargeError as soon as it is known to be too large."""
        limit = self.service.settings.payload_limit
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise PayloadTooLargeError(f"the body has {announced} bytes; at most {limit} are read")
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise PayloadTooLargeError(f"the body is larger than {limit} bytes")
            parts.append(part)
        body, coding = b"".join(parts), request.headers.get("content-encoding")
        return body if coding is None else await inflated(body, coding, limit)


def make_app(*services: Service, traces: Traces | None = None) -> tuple[App, ASGIApp]:
    """The application, and what a server runs: the same inside what the settings put around it."""
    app = App(*services, traces=traces)
    origins = app.service.settings.cors_allow_origin
    return app, CORSMiddleware(
        app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
    ) if origins else app


def _by_name(services: Sequence[Service]) -> dict[str, Service]:
    """The services by what callers may call them: in full, or by the last part where that is clear.

    Raises ConfigError where two have the same name.
    """
    found: dict[str, Service] = {}
    for service in services:
        if found.setdefault(service.name, service) is not service:
            raise ConfigError(f"two models have the name {service.name}; write name=model_id to tell them apart")
    full = [redact(service.settings.model_id or service.name) for service in services]
    for aliases in (full, [name.rpartition("/")[2] for name in full]):
        for alias, service in zip(aliases, services, strict=True):
            if aliases.count(alias) == 1:
                found.setdefault(alias, service)
    return found


def _model_of(body: bytes) -> str | None:
    """The body's `model`; None for a body that has none or is no such object, which its route then refuses itself."""
    try:
        return _MODEL.decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


_MODEL = msgspec.json.Decoder(_Chooses)


@contextmanager
def _watched(request: Request) -> Iterator[None]:
    """Cancels the current task when the caller leaves while it runs."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    watchers: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        request.state.left = True
        if task is not None:
            task.cancel()

    timer = loop.call_later(_PATIENCE_S, lambda: watchers.append(loop.create_task(watch())))
    try:
        yield
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


def _deadline(request: Request) -> float | None:
    """The earliest of the request's own deadlines, on time.monotonic's clock.

    Raises ValidationError for a non-number.
    """
    now, limits = time.monotonic(), []
    for name, origin in (("request-timeout-ms", now), ("request-deadline-ms", now - time.time())):
        value = request.headers.get(name)
        if value is not None:
            try:
                limit = origin + float(value) / 1e3
            except ValueError:
                limit = math.nan
            if math.isnan(limit):  # "nan" itself too, which would never pass
                raise ValidationError(f"{name} must be a number of milliseconds, got {value!r}", param=name)
            limits.append(limit)
    return min(limits, default=None)


def _priority(request: Request) -> str:
    """`x-priority`. Raises ValidationError for an unknown one."""
    name = request.headers.get("x-priority", "normal").lower()
    if name not in HEAD_START_S:
        raise ValidationError(f"x-priority must be one of {', '.join(HEAD_START_S)}, got {name!r}", param="x-priority")
    return name
