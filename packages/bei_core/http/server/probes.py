"""The application on the port of health checks and metrics (`health_port`)."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from bei_core.errors import NotFoundError
from bei_core.http.error_format import TEI
from bei_core.http.replies import error_response

_PROBES = frozenset({"/health", "/health/live", "/health/ready", "/ping", "/metrics"})


def only_probes(app: ASGIApp) -> ASGIApp:
    """Returns an application for the port of health checks and metrics, which refuses all other paths."""

    async def probe(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _PROBES:
            return await app(scope, receive, send)
        error = NotFoundError(f"this port serves {', '.join(sorted(_PROBES))} and nothing else")
        return await error_response(error, TEI)(scope, receive, send)

    return probe
