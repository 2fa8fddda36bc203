"""The application of some models, as a replica runs it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bei_core.errors import RequestError
from bei_core.http.app import App, make_app
from bei_core.http.limits import LEASE, BodyBudget, BodyLease
from bei_core.http.route import Call
from bei_core.http.traces import Traces
from bei_core.serving.service import Service

_ERROR = "bei.error"  # key in the ASGI scope of a request that is refused


def make_application(services: list[Service], traces: Traces | None, budget: BodyBudget) -> tuple[App, ASGIApp]:
    """Returns the App of some services, and the ASGI application that counts the bytes of bodies in the budget."""
    app, asgi = make_app(*services, traces=traces)

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        lease = BodyLease(budget, lambda: None)
        lease.complete()  # Ray's proxy has the whole body, so the request is not refused for another one

        async def counted() -> Message:
            message = await receive()
            lease.grow(len(message.get("body", b"")))
            return message

        try:
            await asgi({**scope, "extensions": {**scope.get("extensions", {}), LEASE: lease}}, counted, send)
        finally:
            lease.release()

    return app, counting


class _RefusingApp(App):
    """Answers each request with the error in its scope, with the headers, log line and trace of any other reply."""

    async def _answer(self, call: Call) -> Response:
        error: RequestError = call.request.scope[_ERROR]
        raise error


def make_refusal(services: list[Service], traces: Traces | None) -> Callable[[RequestError], ASGIApp]:
    """Returns a function that returns the ASGI application that answers with an error, as the App of some services."""
    _, asgi = make_app(*services, traces=traces, kind=_RefusingApp)

    def refusal(error: RequestError) -> ASGIApp:
        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            await asgi({**scope, _ERROR: error}, receive, send)

        return refuse

    return refusal


class Reply(Response):
    """The reply of an ASGI application, which runs when Ray sends the reply. So the middleware of CORS is honoured."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the application answer the request."""
        await self._app(scope, receive, send)
