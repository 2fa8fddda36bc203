"""What Truss loads. Everything is in bei_core; this hands it Truss's config, secrets and requests.

No `from __future__ import annotations` here: Truss finds out what a method takes by its annotations, and a Request that
is a string to it would be taken for the parsed body.
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
from bei_core.metrics import shared_metrics
from bei_core.serving.service import Service
from bei_core.truss.routes import add_routes


class Model:
    """A model served by Truss, with the bodies, statuses and headers of `bei serve`."""

    def __init__(self, *, config: Mapping[str, Any], secrets: Mapping[str, str] | None = None, **_: object) -> None:
        self._config = config
        self._secrets = secrets
        self._app: App | None = None
        self._traces: Traces | None = None

    def load(self) -> None:
        """Opens the models; building their engines first if need be. Truss calls this again where it raises."""
        # A line a request is a sixth of the processor time that the server itself needs for one; the metrics say more.
        logging.getLogger("uvicorn.access").disabled = True
        if self._app is None:
            settings = Settings.from_truss_config(self._config, os.environ, self._secrets)
            self._traces = self._traces or open_traces(settings)
            self._app, everything = make_app(*Service.open_all(settings, shared_metrics()), traces=self._traces)
            add_routes(everything)

    async def predict(self, request: Request) -> Response:
        """`POST /v1/models/model:predict`, Baseten's `/predict`: the route that takes such a body."""
        return await self._loaded().respond_by_shape(request)

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        return await self._loaded().respond(request, "POST", "/v1/embeddings")

    async def is_healthy(self) -> bool:
        """Whether every model answers; decides Truss's readiness once `load` is done."""
        try:
            await self._loaded().check()
        except RequestError:
            return False
        return True

    def _loaded(self) -> App:
        if self._app is None:
            raise RuntimeError("this is a bug: a request before load() has returned")
        return self._app
