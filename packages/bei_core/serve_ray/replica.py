"""One replica of the deployment, and the models that it has loaded."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Mapping, Sequence

import msgspec
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bei_core.config.settings import SETTINGS, Settings
from bei_core.errors import DiskError, NotFoundError, RequestError, StartError, UnauthorizedError, UnhealthyError
from bei_core.http.keys import Keys
from bei_core.http.limits import BodyBudget
from bei_core.http.memory import open_budget
from bei_core.http.naming import by_name
from bei_core.http.traces import Traces, open_traces
from bei_core.logs import configure_worker_logging
from bei_core.metrics import Metrics
from bei_core.serve_ray.asgi import Reply, make_application, make_refusal
from bei_core.serving.service import Service
from bei_core.storage.errors import TransientError

log = logging.getLogger(__name__)

_NUM_MODELS = 4  # the most models of one replica, besides its own


class LoadedModel:
    """A model that a replica has loaded, as an ASGI application.

    Ray drops the least recently used one when there are too many. It is closed when no request refers to it any more.
    """

    def __init__(self, settings: Settings, traces: Traces | None, budget: BodyBudget) -> None:
        self.services = Service.open_all(settings, Metrics())
        self.app, self._asgi = make_application(self.services, traces, budget)
        weakref.finalize(self, _close, self.services)  # not `__del__`, which Ray calls although requests still wait

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        await self._asgi(scope, receive, send)


class Replica:
    """One replica: its own models, and the models that requests have chosen by the header."""

    def __init__(self, settings: Settings) -> None:
        """Opens the models. Ray sends requests to the replica only afterwards. Raises StartError."""
        configure_worker_logging(json_output=settings.json_output, level=settings.log_level)
        self._settings, self._keys = settings, Keys(settings)
        self._traces = open_traces(settings)
        self._budget = open_budget(settings.max_body_bytes_in_flight)
        self._own = LoadedModel(settings, self._traces, self._budget)
        self._by_name = self._own_by_name()
        self._refusal = make_refusal(self._own.services, self._traces)

    def __del__(self) -> None:
        traces: Traces | None = getattr(self, "_traces", None)
        if traces is not None:
            traces.close()

    async def __call__(self, request: Request) -> Response:
        """Answers any route of `bei serve`."""
        try:
            return Reply(await self._chosen(request))
        except RequestError as error:
            return Reply(self._refusal(error))

    @serve.multiplexed(max_num_models_per_replica=_NUM_MODELS)  # type: ignore[untyped-decorator,unused-ignore]
    async def model(self, model_id: str) -> LoadedModel:
        """Loads the model of this name on a thread and returns it. Raises NotFoundError, UnhealthyError."""
        settings = settings_of(self._settings, model_id)
        arguments = settings, self._traces, self._budget
        try:
            return await asyncio.get_running_loop().run_in_executor(None, LoadedModel, *arguments)
        except StartError as error:
            log.warning("the model %r cannot be loaded: %s", model_id, error)
            may_pass = isinstance(error, TransientError | DiskError)
            kind = UnhealthyError if may_pass else NotFoundError
            raise kind(f"the model {model_id!r} cannot be loaded: {error}", param="model") from error

    async def check_health(self) -> None:
        """Raises if the replica is broken, such as when its engine hangs. Ray then replaces the replica."""
        await self._own.app.check()

    async def _chosen(self, request: Request) -> ASGIApp:
        """Returns the application of the model that the header names, else that of the replica's own models.

        For a request without a key that is needed, no model is loaded: the replica's own application refuses it.
        """
        model_id = serve.get_multiplexed_model_id()
        if not model_id or not self._has_key(request):
            return self._own
        known = self._by_name.get(model_id)
        return known or await self.model(model_id)

    def _has_key(self, request: Request) -> bool:
        try:
            return not self._keys or self._keys.client(dict(request.scope["headers"][::-1])) is not None
        except UnauthorizedError:
            return False

    def _own_by_name(self) -> Mapping[str, ASGIApp]:
        """Maps the names of the replica's own models to their applications."""
        services = self._own.services
        if len(services) == 1:
            return dict.fromkeys(by_name(services), self._own)
        apps = {each.name: make_application([each], self._traces, self._budget)[1] for each in services}
        return {name: apps[service.name] for name, service in by_name(services).items()}


def _close(services: Sequence[Service]) -> None:
    for service in services:
        service.close()


def settings_of(settings: Settings, model_id: str) -> Settings:
    """Returns the settings of another model: those of a replica, without what is of its own models only."""
    defaults = {name: setting.default for name, setting in SETTINGS.items() if setting.about.of_one_model}
    return msgspec.structs.replace(settings, models=(), model_id=model_id, **defaults)
