"""The ASGI application: finds the route, reads the body, runs the task, and turns every error into an error reply."""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import getrandbits

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
from bei_core.http.bodies import INLINE_BODY_BYTES, convert_large, free, inflated, joined, measure, memory_of
from bei_core.http.keys import Keys
from bei_core.http.naming import Names
from bei_core.http.openapi import documents
from bei_core.http.replies import (
    BYTES_PER_NUMBER,
    INLINE_NUMBERS,
    UNCOUNTED_NUMBERS,
    Deferred,
    Refusal,
    complete,
    error_response,
    format_of,
    valid_s,
)
from bei_core.http.route import MANY_TOKENS, Call, Route, prepare_schemas
from bei_core.http.routes import FIELD_ROUTER, ROUTES
from bei_core.http.schemas.common import Body, RequestContext, convert, decode
from bei_core.http.traces import Traces
from bei_core.http.urgency import HEADERS, is_retry, read_deadline, read_priority
from bei_core.serving.service import Service

log = logging.getLogger(__name__)

# A client's own request id; the second header is that of Baseten's performance client. Without them, the id is random.
_REQUEST_ID, _CUSTOMER_ID = b"x-baseten-request-id", b"x-baseten-customer-request-id"
_MAX_ID = 128  # characters of a client's request id

_IS_COMING = "bei.is_coming"  # key in the ASGI scope of a request that `refused_early` has accepted

_GONE = 499  # nginx's status "client closed request"; it appears in logs only


class App:
    """An ASGI application that serves one or several models. Other servers, such as Truss, call `respond` directly."""

    def __init__(self, *services: Service, traces: Traces | None = None) -> None:
        self.services = services
        self.service = services[0]  # the server uses the settings and metrics of this one
        self.draining = False  # if set, replies tell the client to close its connection
        self.cut_off = False  # set when the drain is over and the server closes connections without an answer
        self._traces = traces
        keys = Keys(self.service.settings)
        self._keys = keys if keys else None
        self._names = Names(services)
        routes = (*ROUTES, *documents(with_pages=self.service.settings.ui))
        prepare_schemas(routes)
        self._routes: dict[tuple[str, str], Route] = {
            (route.method, route.path): route for route in routes if not route.takes_any
        }
        self._any_body = {route.path for route in routes if route.takes_any}
        self._methods: dict[str, list[str]] = {}
        for route in routes:
            self._methods.setdefault(route.path, []).append(route.method)
        self._refusals: dict[tuple[str, str, bool], Refusal] = {}  # the newest by path, priority and whether a retry
        self._num_coming = 0  # requests that `refused_early` has accepted and whose task has not begun
        self._templates = [
            (path.partition("{")[0], path.partition("}")[2], path) for path in self._methods if "{" in path
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI request; ignores scopes of types other than `http`."""
        if scope["type"] != "http":
            return
        if scope.pop(_IS_COMING, False):
            self._num_coming -= 1
        response = await self.respond(Request(scope, receive), scope["method"], scope["path"])
        if self.draining:
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    async def respond_by_fields(self, request: Request) -> Response:
        """Returns the reply of the route that fits the fields of the body; raises the same errors as `respond`."""
        return await self.respond(request, "POST", "/")

    async def respond(self, request: Request, method: str, path: str) -> Response:
        """Returns the reply for a method and path, with the header `x-request-id`. Errors become error replies.

        Raises only if the server cancels the request or the process ends.
        """
        headers = dict(request.scope["headers"][::-1])
        given_id = headers.get(_REQUEST_ID) or headers.get(_CUSTOMER_ID, b"")
        request_id = given_id.decode("latin-1")[:_MAX_ID] or f"{getrandbits(64):016x}"
        path = path.rstrip("/") or "/"
        place = "GET" if method == "HEAD" else method
        route = self._routes.get((place, path)) or self._routes.get((place, self._template(path)))
        call = Call(request, method, path, headers, request_id, self._names, self.service, route, FIELD_ROUTER.route_of)
        error: RequestError | None = None
        try:
            response = await self._answer(call)
        except RequestError as fault:
            error, response = fault.with_traceback(None), self._refuse(fault, call)
            error.__cause__ = error.__context__ = None  # with its traceback it would keep the body until a collection
        except ClientDisconnect:
            response = self._left(call)
        except asyncio.CancelledError:
            if call.watch is None or not call.watch.left:
                raise
            response = self._left(call)
        except (SystemExit, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:  # also catches a panic in a Rust library, which is not an Exception
            log.exception("this is a bug: %s %r failed (request %s)", method, path, request_id)
            error = EngineError("internal error; see the server's log")
            response = self._refuse(error, call)
        finally:
            if call.client is not None:
                call.client.leave()
        is_lost = response.status_code == _GONE or self.cut_off  # a thread may still read the body
        if call.is_large and not is_lost:
            held, call.body = [call.body], None
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.run_in_executor, None, free, held)  # when nothing here refers to it
        response.headers["x-request-id"] = request_id
        self._record(call, response.status_code, error)
        return response

    def refused_early(self, scope: Scope) -> Refusal | None:
        """Returns the 429 reply if the server is too busy for this request, whatever its body is; None otherwise.

        With several models, all those that the route may choose have to be too busy, since the body names the model.
        It needs only the head of the request: it starts no asyncio task and does not read the body. A rendered reply
        is used again for a short time, so that refusing many requests takes little from those that are accepted. The
        caller counts the reply with `Refusal.count`.
        """
        for service in self.services:
            if service.is_busy:
                break
        else:
            return None
        method, path = scope["method"], scope["path"].rstrip("/") or "/"
        route, services = self._routes.get((method, path)), self.services
        if route is None and method == "POST" and path in self._any_body:
            route = FIELD_ROUTER.default(self.service)
        elif route is not None:
            services = self._candidates(route)
        if route is None or route.schema is None or route.answer is not None:
            return None
        if not all(each.is_busy for each in services):
            return None
        headers = dict(scope["headers"][::-1])
        try:
            if self._keys is not None:
                self._keys.client(headers)
            priority = read_priority(headers)
        except RequestError:  # `respond` finds the same error again and sends it
            return None
        is_again = is_retry(headers)
        refusal = self._refusal(route, priority, services, is_retry=is_again)
        if refusal is None:
            for service in services:
                service.accepted(is_retry=is_again)
            scope[_IS_COMING] = True
            self._num_coming += 1
            return None
        request_id = (headers.get(_REQUEST_ID) or headers.get(_CUSTOMER_ID, b"")).decode("latin-1")[:_MAX_ID]
        if self._traces is not None or service.settings.access_log:
            request_id, route_of = request_id or f"{getrandbits(64):016x}", FIELD_ROUTER.route_of
            call = Call(Request(scope), method, path, headers, request_id, self._names, service, route, route_of)
            self._record(call, 429, refusal.error)
        return replace(refusal, request_id=request_id) if request_id else refusal

    def _candidates(self, route: Route) -> tuple[Service, ...]:
        """Returns the models that can answer a route; all if there is none."""
        kinds = route.schema.kinds if route.schema is not None else ()
        return tuple(each for each in self.services if not each.model.roles.isdisjoint(kinds)) or self.services

    def _refusal(self, route: Route, priority: str, services: Sequence[Service], *, is_retry: bool) -> Refusal | None:
        """Returns the newest refusal of the same kind, if it is still valid or all models refuse."""
        now, kind = time.monotonic(), (route.path, priority, is_retry)
        refusal = self._refusals.get(kind)
        if refusal is not None and now < refusal.until:
            return refusal
        faults: list[OverloadedError] = []
        for service in services:
            try:
                service.check_load(priority, self._num_coming, is_retry=is_retry)
            except OverloadedError as fault:
                faults.append(fault)
            else:
                return None
        soonest = min(faults, key=lambda fault: fault.retry_after_s)
        response = error_response(soonest, route.errors, route.inputs)
        until = now + valid_s(self.service.settings.max_queue_wait_s)
        renew = partial(self._refusal, route, priority, services, is_retry=is_retry)
        refusal = Refusal.of(soonest, response, until, self._count, renew)
        self._refusals[kind] = refusal
        return refusal

    async def check(self) -> None:
        """Checks every model. Raises UnhealthyError if one of them does not work."""
        await Service.check_all(self.services)

    def drain(self) -> None:
        """Starts draining: from now on health checks fail, and every reply closes its connection."""
        self.draining = True
        for service in self.services:
            service.drain()

    async def _answer(self, call: Call) -> Response:
        """Finds the route, checks the API key, decodes the body, and returns the reply. Raises RequestError."""
        if call.route is None and call.method == "POST" and call.path in self._any_body:
            call.default = FIELD_ROUTER.default(self.service)
        route = call.route or call.default
        if route is None:
            raise self._unrouted(call)
        if self._keys is not None and not route.public:
            client = self._keys.client(call.headers)
            client.enter()
            call.client = client
        if not HEADERS.isdisjoint(call.headers):  # read before the body, so that receiving the body counts too
            call.deadline, call.priority = read_deadline(call.headers), read_priority(call.headers)
        if route.schema is not None:
            raw = (await self._body(call)).removeprefix(codecs.BOM_UTF8)
            if len(raw) > INLINE_BODY_BYTES:
                await self._decode_large(call, raw)
            else:
                call.body = decode(raw, route.schema) if call.route else self._converted(call, decode(raw, object))
            del raw  # frees memory: the body may be large, and the reply may take long
        if len(self.services) > 1:
            call.service = self._chosen(call)
        call.timings.model = call.service.model.name
        return await self._run(call)

    async def _run(self, call: Call) -> Response:
        """Returns the reply to a call whose body is decoded. Cancels the current task if the client disconnects."""
        service, route, watch = call.service, call.route, call.watch or call.receive_disconnect()
        watch.task = asyncio.current_task()
        try:
            if watch.left:  # while the body was decoded
                raise ClientDisconnect
            if route is not None and route.answer is not None:
                value = await route.answer(call)
            else:
                body: Body = call.body
                model = service.model
                if model.roles.isdisjoint(body.kinds):
                    model.check_kind(body.kinds)
                task = body.to_task(model) if not call.is_large else await asyncio.to_thread(body.to_task, model)
                result = await service.run(
                    task, deadline=call.deadline, priority=call.priority, timings=call.timings, reserve=call.reserve
                )
                if call.timings.num_tokens > MANY_TOKENS:
                    call.mark_large()
                path = str(call.request.scope.get("path")).rstrip("/") or "/"  # Truss's is not the one of the route
                context = RequestContext(model, call.request_id, path in self._any_body)
                inputs, tokens = call.timings.num_inputs, call.timings.num_tokens
                size = inputs * model.row_width if task.output == "rows" else tokens * (model.token_width or 64)
                if call.is_large or size > INLINE_NUMBERS:
                    value = Deferred.of(result, partial(body.to_reply, result, context))
                else:
                    value = body.to_reply(result, context)
                    if size > UNCOUNTED_NUMBERS:  # so that a 429 is possible if there is no memory to keep the reply
                        call.count_reply(BYTES_PER_NUMBER * size)
            if isinstance(value, Deferred):
                call.count_reply(value.num_bytes)
        finally:
            watch.task = None
            if call.receiver is not None:
                call.receiver.close()
        timings = call.timings if call.timings.num_inputs else None  # None for a route that did not run the model
        response = await complete(value, call.request.scope["headers"], timings, service.model.compute_type)
        if timings is not None:  # a request whose large reply cannot be made has failed
            self.service.metrics.succeeded(timings)
        return response

    async def _decode_large(self, call: Call, raw: bytes) -> None:
        """Decodes a large body on a thread into `call.body`.

        The budget of bytes counts the memory of the decoded body before that is taken, and then instead of `raw`.
        Raises the same errors as `Undecoded`, and OverloadedError if the budget is exceeded.
        """
        schema, call.is_large = call.route.schema if call.route else None, True
        undecoded = await measure(raw)
        counted = undecoded.num_bytes
        call.count_bytes(counted)

        def work() -> int:
            call.body = undecoded.decode(schema) if schema else self._converted(call, undecoded.decode(object))
            return memory_of(call.body)

        call.count_bytes(await asyncio.to_thread(work) - counted - len(raw))

    def _converted(self, call: Call, body: object) -> object:
        """Chooses the route by the fields of a decoded body, sets `call.route`, and returns the body in its schema."""
        service = self._names.chosen(body.get("model") if isinstance(body, dict) else None) or self.service
        call.default = FIELD_ROUTER.default(service)
        route = call.route = call.route_of(body, service)
        if route.schema is None:
            raise TypeError(f"this is a bug: {route.path} has no schema")
        return convert_large(body, route.schema) if call.is_large else convert(body, route.schema)

    def _chosen(self, call: Call) -> Service:
        """Returns the model that the request names, else the first model that can answer it. Raises NotFoundError."""
        route, body = call.route, call.body
        named = self._names.chosen(call.request.query_params.get("model") if body is None else body.model)
        if named is not None or route is None or route.schema is None or not route.schema.kinds:
            return named or self.service
        return self._candidates(route)[0]

    def _unrouted(self, call: Call) -> RequestError:
        """Returns the error for an unknown path (404), or for a known path with another method (405)."""
        known = call.path if call.path in self._methods else self._template(call.path)
        if not known:
            return NotFoundError(f"there is no {call.path}; known are {', '.join(sorted(self._methods))}")
        methods = ", ".join(sorted(self._methods[known]))
        return MethodNotAllowedError(f"{call.path} is served by {methods}, not by {call.method}", allow=methods)

    def _template(self, path: str) -> str:
        """Returns the path template, such as `/v1/models/{id}`, that a path matches; "" if there is none."""
        found = (known for start, end, known in self._templates if path.startswith(start) and path.endswith(end))
        return next(found, "")

    def _refuse(self, error: RequestError, call: Call) -> Response:
        self._count(error, is_counted=call.timings.is_counted)
        route = call.route or call.default
        if route is None:
            return error_response(error, format_of(call.path))
        return error_response(error, route.errors, route.inputs_of(call.body))

    def _count(self, error: RequestError, *, is_counted: bool = False) -> None:
        self.service.metrics.failed(error.kind.lower(), is_counted=is_counted)
        if isinstance(error, OverloadedError):
            self.service.metrics.refused(error.cause)

    def _record(self, call: Call, status: int, error: RequestError | None) -> None:
        """Writes the trace span and the access log."""
        if self._traces is not None and (call.route is None or not call.route.public):  # no spans of probes
            self._traces.record(call, status, error)
        if self.service.settings.access_log:
            call.log(status)

    def _left(self, call: Call) -> Response:
        """Counts a request without a reply; returns the response for the logs."""
        if self.cut_off:
            self.service.metrics.failed("unhealthy", is_counted=call.timings.is_counted)
            return Response(status_code=503)
        self.service.metrics.cancelled()
        return Response(status_code=_GONE)

    async def _body(self, call: Call) -> bytes:
        """Reads and decompresses the whole body. Raises PayloadTooLargeError as soon as it exceeds `payload_limit`."""
        limit = self.service.settings.payload_limit
        announced = call.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            raise PayloadTooLargeError(f"the body has {int(announced)} bytes; at most {limit} are read")
        parts, size = [], 0
        async for part in call.request.stream():
            size += len(part)
            if size > limit:
                raise PayloadTooLargeError(f"the body is larger than {limit} bytes")
            if part:
                parts.append(part)
        body = parts[0] if len(parts) == 1 else await joined(parts, size, call.request.scope)
        coding = call.headers.get(b"content-encoding")
        if coding is None:
            return body
        return await inflated(body, coding.decode("latin-1"), limit, call.request.scope)


def make_app(*services: Service, traces: Traces | None = None, kind: type[App] = App) -> tuple[App, ASGIApp]:
    """Returns the App, a `kind`, and the ASGI application to run: the App with CORS if `cors_allow_origin` is set."""
    app = kind(*services, traces=traces)
    origins = app.service.settings.cors_allow_origin
    return app, CORSMiddleware(
        app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
    ) if origins else app
