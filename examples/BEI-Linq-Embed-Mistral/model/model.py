"""The class that Truss loads. It hands Truss's config, secrets and requests to bei_core, which does everything.

This file must not have `from __future__ import annotations`: Truss looks at the annotations of the methods to find out
what they take. If `Request` were a string, Truss would pass the parsed body instead.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bei_core.config.settings import Settings
from bei_core.errors import RequestError
from bei_core.http.app import App, make_app
from bei_core.http.traces import Traces, open_traces
from bei_core.logs import configure_own_logging
from bei_core.metrics import shared_metrics
from bei_core.serving.service import Service
from bei_core.truss.routes import add_routes


class Model:
    """A model on Truss's server, with the routes, statuses and headers of `bei serve`."""

    def __init__(self, *, config: Mapping[str, Any], secrets: Mapping[str, str] | None = None, **_: object) -> None:
        self._config = config
        self._secrets = secrets
        self._app: App | None = None
        self._traces: Traces | None = None

    def load(self) -> None:
        """Opens the models, after building their engines if needed. Truss calls this again if it raises."""
        # The access log costs a sixth of the processor time that the server needs for a request; the metrics say more.
        logging.getLogger("uvicorn.access").disabled = True
        if self._app is None:
            settings = Settings.from_truss_config(self._config, os.environ, self._secrets)
            configure_own_logging(json_output=settings.json_output, level=settings.log_level)
            self._traces = self._traces or open_traces(settings)
            self._app, everything = make_app(*Service.open_all(settings, shared_metrics()), traces=self._traces)
            add_routes(everything)

    async def predict(self, request: Request) -> Response:
        """`POST /v1/models/model:predict`, which is Baseten's `/predict`: the fields of the body choose the route."""
        return await self._loaded().respond_by_fields(request)

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        return await self._loaded().respond(request, "POST", "/v1/embeddings")

    async def is_healthy(self) -> bool:
        """Whether every model answers. Truss's readiness depends on it once `load` has returned."""
        try:
            await self._loaded().check()
        except RequestError:
            return False
        return True

    def _loaded(self) -> App:
        if self._app is None:
            raise RuntimeError("this is a bug: a request arrived before load() returned")
        return self._app
