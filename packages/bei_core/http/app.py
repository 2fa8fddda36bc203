"""The ASGI application: finds the route, reads the body, has it answered, maps every error to its reply."""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bei_core.errors import (
    EngineError,
    MethodNotAllowedError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    RequestError,
)
from bei_core.http.bodies import INLINE_BODY_BYTES, decode_large, inflated, memory_of
from bei_core.http.keys import Keys
from bei_core.http.naming import by_name
from bei_core.http.openapi import documents
from bei_core.http.replies import INLINE_NUMBERS, Deferred, complete, error_response, format_of
from bei_core.http.route import Call
from bei_core.http.routes import BY_SHAPE, ROUTES
from bei_core.http.schemas.common import Body, RequestContext, convert, decode
from bei_core.http.traces import Traces
from bei_core.http.urgency import HEADERS, read_deadline, read_priority
from bei_core.serving.service import Service

log = logging.getLogger(__name__)

# Only a request that takes longer is cancelled if its client leaves: the check would cost more than a short request.
_PATIENCE_S = 0.1

_MAX_ID = 128  # characters of a client's request id

_GONE = 499  # nginx's "client closed request": logged, never received

_NO_MODEL = frozenset({None, "", "not-required"})  # the last is what Baseten's clients send if they must name one


class App:
    """The routes of one or several models as an ASGI application; `respond` serves the requests of another server."""

    def __init__(self, *services: Service, traces: Traces | None = None) -> None:
        self.services = services
        self.service = services[0]  # its settings and metrics are those of the server
        self.draining = False  # replies then tell the client to close its connection
        self._traces = traces
        keys = Keys(self.service.settings)
        self._keys = keys if keys else None
        self._by_name = by_name(services)
        routes = (*ROUTES, *documents(with_pages=self.service.settings.ui))
        self._routes = {(route.method, route.path): route for route in routes if not route.takes_any}
        self._any_body = {route.path for route in routes if route.takes_any}
        self._methods: dict[str, list[str]] = {}
        for route in routes:
            self._methods.setdefault(route.path, []).append(route.method)
        self._prefixes = {path.partition("{")[0]: path for path in self._methods if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI request."""
        if scope["type"] != "http":
            return
        response = await self.respond(Request(scope, receive), scope["method"], scope["path"])
        if self.draining:
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    async def respond_by_shape(self, request: Request) -> Response:
        """The reply of the route that the body is for; raises as `respond` does."""
        return await self.respond(request, "POST", "/")

    async def respond(self, request: Request, method: str, path: str) -> Response:
        """The reply of a route, with the request's id. Raises only if the server cancels it."""
        headers = dict(request.scope["headers"][::-1])
        given = headers.get(b"x-baseten-request-id", b"").decode("latin-1")
        request_id = given[:_MAX_ID] or f"{random.getrandbits(64):016x}"
        path = path.rstrip("/") or "/"
        place = "GET" if method == "HEAD" else method
        route = self._routes.get((place, path)) or self._routes.get((place, self._template(path)))
        call = Call(request, method, path, headers, request_id, self.services, self.service, route, BY_SHAPE.route_of)
        error: RequestError | None = None
        try:
            response = await self._answer(call)
        except RequestError as fault:
            error, response = fault, self._refuse(fault, call)
        except ClientDisconnect:
            response = self._left()
        except asyncio.CancelledError:
            if not getattr(request.state, "left", False):
                raise
            response = self._left()
        except (SystemExit, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:  # also a panic of a library in Rust, which is no Exception
            log.exception("this is a bug: %s %s failed", method, path)
            error = EngineError("internal error; see the server's log")
            response = self._refuse(error, call)
        finally:
            if call.client is not None:
                call.client.leave()
        self._finish(call, response, error)
        return response

    def refused_early(self, scope: Scope) -> Response | None:
        """The reply to a request that would be refused whatever its body is, as an overloaded server does at once.

        None for any other request. It costs no task, and the body is neither decoded nor kept.
        """
        service, method, path = self.service, scope["method"], scope["path"]
        if not service.is_busy or len(self.services) > 1:
            return None
        route = self._routes.get((method, path))
        if route is None and method == "POST" and path in self._any_body:
            route = BY_SHAPE.default(service)
        if route is None or route.schema is None or route.answer is not None:
            return None
        headers = dict(scope["headers"][::-1])
        given = headers.get(b"x-baseten-request-id", b"").decode("latin-1")
        request_id = given[:_MAX_ID] or f"{random.getrandbits(64):016x}"
        call = Call(Request(scope), method, path, headers, request_id, self.services, service, route, BY_SHAPE.route_of)
        try:
            if self._keys is not None:
                self._keys.client(headers)
            service.check_load(read_priority(headers))
        except OverloadedError as fault:
            response = self._refuse(fault, call)
            self._finish(call, response, fault)
            return response
        except RequestError:  # which the application finds again, and tells
            pass
        return None

    async def check(self) -> None:
        """Raises UnhealthyError unless every model answers."""
        for service in self.services:
            await service.check()

    def drain(self) -> None:
        """Makes health checks fail and replies close their connections from here on."""
        self.draining = True
        for service in self.services:
            service.drain()

    async def _answer(self, call: Call) -> Response:
        """The reply of the route. Raises a RequestError if there is none."""
        if call.route is None and call.method == "POST" and call.path in self._any_body:
            call.default = BY_SHAPE.default(self.service)
        route = call.route or call.default
        if route is None:
            raise self._unrouted(call)
        if self._keys is not None and not route.public:
            client = self._keys.client(call.headers)
            client.enter()
            call.client = client
        if not HEADERS.isdisjoint(call.headers):  # before the body, whose arrival and decoding count
            call.deadline, call.priority = read_deadline(call.headers), read_priority(call.headers)
        if route.schema is not None:
            raw = await self._body(call)
            if len(raw) > INLINE_BODY_BYTES:
                await self._decode_large(call, raw)
            else:
                call.body = decode(raw, route.schema) if call.route else self._shaped(call, decode(raw, object))
            del raw  # it may be large, and the reply may take long
        if len(self.services) > 1:
            call.service = self._chosen(call)
        call.timings.model = call.service.model.name
        return await self._run(call)

    async def _run(self, call: Call) -> Response:
        """The reply to a call whose body is read; cancels the current task if the client leaves meanwhile."""
        service, route, watchers = call.service, call.route, list[asyncio.Task[None]]()
        timer = asyncio.get_running_loop().call_later(
            _PATIENCE_S, _watch, call.request, watchers, asyncio.current_task()
        )
        try:
            if route is not None and route.answer is not None:
                value = await route.answer(call)
            else:
                body: Body = call.body
                model = service.model
                if model.roles.isdisjoint(body.kinds):
                    model.check_kind(body.kinds)
                task = body.to_task(model) if not call.is_large else await asyncio.to_thread(body.to_task, model)
                result = await service.run(task, deadline=call.deadline, priority=call.priority, timings=call.timings)
                context = RequestContext(model, call.request_id, call.request.scope.get("path") in self._any_body)
                inputs, tokens = call.timings.num_inputs, call.timings.num_tokens
                size = inputs * model.row_width if task.output == "rows" else tokens * (model.token_width or 64)
                if call.is_large or size > INLINE_NUMBERS:
                    value = Deferred.of(result, partial(body.to_reply, result, context))
                else:
                    value = body.to_reply(result, context)
            if isinstance(value, Deferred):
                call.count_bytes(value.num_bytes)
        finally:
            timer.cancel()
            for watcher in watchers:
                watcher.cancel()
        timings = call.timings if call.timings.num_inputs else None  # of a route that ran the model
        if timings is not None:
            self.service.metrics.succeeded(timings)
        return await complete(value, call.request.scope["headers"], timings, service.model.compute_type)

    async def _decode_large(self, call: Call, raw: bytes) -> None:
        """Decodes a large body on a thread. The budget of bytes then has what it takes in memory, in place of `raw`.

        Raises as `decode_large`, and OverloadedError if the server has no memory left for it.
        """
        schema = call.route.schema if call.route else None

        def work() -> int:
            call.body = self._shaped(call, decode_large(raw, object)) if schema is None else decode_large(raw, schema)
            return memory_of(call.body)

        call.is_large = True
        call.count_bytes(await asyncio.to_thread(work) - len(raw))

    def _shaped(self, call: Call, body: object) -> object:
        """The decoded body of a route that its fields decide, as that route's schema; sets the call's route."""
        service = self._named(body.get("model") if isinstance(body, dict) else None) or self.service
        call.default = BY_SHAPE.default(service)
        route = call.route = call.route_of(body, service)
        if route.schema is None:
            raise TypeError(f"this is a bug: {route.path} has no schema")
        return convert(body, route.schema)

    def _chosen(self, call: Call) -> Service:
        """The model that the request names, else the first that can answer it. Raises NotFoundError."""
        route, body = call.route, call.body
        named = self._named(call.request.query_params.get("model") if body is None else body.model)
        if named is not None or route is None or route.schema is None or not route.schema.kinds:
            return named or self.service
        kinds = route.schema.kinds
        return next((each for each in self.services if not each.model.roles.isdisjoint(kinds)), self.service)

    def _named(self, name: object) -> Service | None:
        """The model of a name; None if the request names none. Raises NotFoundError for one that is not served."""
        if len(self.services) == 1 or not isinstance(name, str) or name in _NO_MODEL:
            return None
        if name not in self._by_name:
            known = ", ".join(service.name for service in self.services)
            raise NotFoundError(f"there is no model {name!r}; known are {known}", param="model")
        return self._by_name[name]

    def _unrouted(self, call: Call) -> RequestError:
        """The error for a path that is unknown, or that another method is for."""
        known = call.path if call.path in self._methods else self._template(call.path)
        if not known:
            return NotFoundError(f"there is no {call.path}; known are {', '.join(sorted(self._methods))}")
        methods = ", ".join(sorted(self._methods[known]))
        return MethodNotAllowedError(f"{call.path} is served by {methods}, not by {call.method}", allow=methods)

    def _template(self, path: str) -> str:
        """The path with a parameter, such as `/v1/models/{id}`, that a path fits; empty if there is none."""
        return next((known for prefix, known in self._prefixes.items() if path.startswith(prefix)), "")

    def _refuse(self, error: RequestError, call: Call) -> Response:
        self.service.metrics.failed(error.kind.lower())
        if isinstance(error, OverloadedError):
            self.service.metrics.refused(error.cause)
        route = call.route or call.default
        if route is None:
            return error_response(error, format_of(call.path))
        return error_response(error, route.errors, route.inputs)

    def _finish(self, call: Call, response: Response, error: RequestError | None) -> None:
        """Completes the reply by the request's id, and records the request."""
        response.headers["x-request-id"] = call.request_id
        if self._traces is not None and (call.route is None or not call.route.public):  # probes would hide the rest
            self._traces.record(call, response.status_code, error)
        if self.service.settings.access_log:
            call.log(response.status_code)

    def _left(self) -> Response:
        self.service.metrics.cancelled()
        return Response(status_code=_GONE)

    async def _body(self, call: Call) -> bytes:
        """The whole body. Raises PayloadTooLargeError as soon as it is known to be too large."""
        limit = self.service.settings.payload_limit
        announced = call.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            raise PayloadTooLargeError(f"the body has {int(announced)} bytes; at most {limit} are read")
        parts, size = [], 0
        async for part in call.request.stream():
            size += len(part)
            if size > limit:
                raise PayloadTooLargeError(f"the body is larger than {limit} bytes")
            parts.append(part)
        body, coding = b"".join(parts), call.headers.get(b"content-encoding")
        if coding is None:
            return body
        return await inflated(body, coding.decode("latin-1"), limit, call.request.scope)


def make_app(*services: Service, traces: Traces | None = None) -> tuple[App, ASGIApp]:
    """The application, and what a server runs: the application with CORS if the settings ask for it."""
    app = App(*services, traces=traces)
    origins = app.service.settings.cors_allow_origin
    return app, CORSMiddleware(
        app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
    ) if origins else app


def _watch(request: Request, watchers: list[asyncio.Task[None]], task: asyncio.Task[None] | None) -> None:
    """Starts a watcher, which it adds to `watchers`, that cancels `task` when the client leaves."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        request.state.left = True
        if task is not None:
            task.cancel()

    watchers.append(asyncio.ensure_future(watch()))
