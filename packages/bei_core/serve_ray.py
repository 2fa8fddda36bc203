"""BEI on Ray Serve: `serve run bei_core.serve_ray:app model_id=BAAI/bge-small-en-v1.5 max_replicas=8`.

The routes are those of `bei serve`. Ray Serve scales the replicas by the number of waiting and running requests. The
header `serve_multiplexed_model_id` chooses another model for a request; Ray sends the request to a replica that has
loaded this model, if there is one.

Ray's proxy takes the connections, so settings of connections are refused. All others are honoured by each replica.
Source: docs.ray.io, "Serve: Autoscaling", "Model multiplexing" and "Set Up FastAPI and HTTP".
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bei_core.config.convert import unknown, value_of
from bei_core.config.settings import SETTINGS, Settings
from bei_core.config.sources import from_environ
from bei_core.errors import (
    ConfigError,
    DiskError,
    NotFoundError,
    RequestError,
    StartError,
    UnauthorizedError,
    UnhealthyError,
)
from bei_core.http.app import App, make_app
from bei_core.http.keys import Keys
from bei_core.http.limits import LEASE, BodyBudget, BodyLease
from bei_core.http.memory import MemoryReturner
from bei_core.http.naming import by_name
from bei_core.http.replies import error_response, format_of
from bei_core.http.traces import Traces, open_traces
from bei_core.logs import configure_worker_logging
from bei_core.metrics import Metrics
from bei_core.serving.service import Service
from bei_core.storage.errors import TransientError

log = logging.getLogger(__name__)

_NUM_MODELS = 4  # the most models of one replica, besides its own

_TIMEOUT = "give http_options.request_timeout_s to Ray Serve"

# Settings of connections, which Ray's proxy has, and what to do instead.
REFUSED: Mapping[str, str] = {
    "hostname": "give http_options.host to Ray Serve (serve start --http-host)",
    "port": "give http_options.port to Ray Serve (serve start --http-port)",
    "uds_path": "the proxy listens on a host and a port",
    "health_port": "ask the proxy at /-/healthz, or the application at /health",
    "max_connections": "limit the requests of a replica with max_ongoing_requests",
    "header_timeout_s": _TIMEOUT,
    "body_timeout_s": _TIMEOUT,
    "send_timeout_s": _TIMEOUT,
    "keep_alive_timeout_s": "give http_options.keep_alive_timeout_s to Ray Serve",
}


class Scaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the deployment, besides the settings of the model."""

    min_replicas: Annotated[int, Meta(ge=0)] = 1
    max_replicas: Annotated[int, Meta(ge=1)] = 1
    # Requests per replica; if there are more, Ray starts another replica.
    target_ongoing_requests: Annotated[float, Meta(gt=0)] = 32.0
    # Requests per replica; if there are more, they wait in Ray's proxy.
    max_ongoing_requests: Annotated[int, Meta(ge=1)] = 512
    num_cpus: Annotated[float, Meta(ge=0)] = 1.0
    num_gpus: Annotated[float, Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")


class LoadedModel:
    """A model that a replica has loaded. Ray drops the least recently used one when there are too many."""

    def __init__(self, settings: Settings, traces: Traces | None, budget: BodyBudget) -> None:
        self.services = Service.open_all(settings, Metrics())
        self.app, self.asgi = _application(self.services, traces, budget)

    def __del__(self) -> None:
        for service in getattr(self, "services", ()):
            service.close()


class Replica:
    """One replica: its own models, and the models that requests have chosen by the header."""

    def __init__(self, settings: Settings) -> None:
        """Opens the models. Ray sends requests to the replica only afterwards. Raises StartError."""
        configure_worker_logging(json_output=settings.json_output, level=settings.log_level)
        self._settings, self._keys = settings, Keys(settings)
        self._traces = open_traces(settings)
        self._budget = BodyBudget(settings.max_body_bytes_in_flight, MemoryReturner().later)
        self._own = LoadedModel(settings, self._traces, self._budget)
        self._by_name = self._own_by_name()

    def __del__(self) -> None:
        traces: Traces | None = getattr(self, "_traces", None)
        if traces is not None:
            traces.close()

    async def __call__(self, request: Request) -> Response:
        """Answers any route of `bei serve`."""
        try:
            return _Reply(await self._chosen(request))
        except RequestError as error:
            return error_response(error, format_of(request.scope["path"]))

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
            return self._own.asgi
        known = self._by_name.get(model_id)
        return known or (await self.model(model_id)).asgi

    def _has_key(self, request: Request) -> bool:
        try:
            return not self._keys or self._keys.client(dict(request.scope["headers"][::-1])) is not None
        except UnauthorizedError:
            return False

    def _own_by_name(self) -> Mapping[str, ASGIApp]:
        """Maps the names of the replica's own models to their applications."""
        services = self._own.services
        if len(services) == 1:
            return dict.fromkeys(by_name(services), self._own.asgi)
        apps = {each.name: _application([each], self._traces, self._budget)[1] for each in services}
        return {name: apps[service.name] for name, service in by_name(services).items()}


class _Reply(Response):
    """The reply of an ASGI application, which runs when Ray sends the reply. So the middleware of CORS is honoured."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _application(services: list[Service], traces: Traces | None, budget: BodyBudget) -> tuple[App, ASGIApp]:
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


def settings_of(settings: Settings, model_id: str) -> Settings:
    """Returns the settings of another model: those of a replica, without what is of its own models only."""
    defaults = {name: setting.default for name, setting in SETTINGS.items() if setting.about.of_one_model}
    return msgspec.structs.replace(settings, models=(), model_id=model_id, **defaults)


def app(arguments: Mapping[str, Any]) -> Application:
    """Returns the application. `arguments` are settings of `bei serve` or options of `Scaling`; all may be texts.

    Raises ConfigError for an unknown argument, a wrong value, or a setting of connections, which Ray's proxy has.
    """
    names = Scaling.__struct_fields__
    for name in arguments:
        if name not in SETTINGS and name not in names:
            raise unknown("argument", name, (*SETTINGS, *names))
    given = {name: value for name, value in arguments.items() if name in names}
    try:
        scaling = msgspec.convert(given, Scaling, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"an option of the deployment is wrong: {error}") from error
    settings = _settings({name: value for name, value in arguments.items() if name not in names})
    deployment: Any = serve.deployment(
        Replica,
        name="bei",
        max_ongoing_requests=scaling.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
        },
    )
    application: Application = deployment.bind(settings)
    return application


def _settings(given: Mapping[str, Any]) -> Settings:
    """Returns the settings of arguments and of the environment. Raises ConfigError."""
    values = {
        name: value_of(SETTINGS[name], value, name, strict=False)
        if isinstance(value, str) and SETTINGS[name].plain in {bool, int, float}
        else value
        for name, value in given.items()
    }
    _refuse(given)
    settings = Settings.load(values, os.environ)
    if unused := settings.without_effect():
        log.warning("settings without effect: %s", "; ".join(unused))
    return settings


def _refuse(given: Mapping[str, Any]) -> None:
    """Raises ConfigError if an argument or an environment variable sets what Ray's proxy has."""
    from_variables = from_environ(SETTINGS, os.environ)
    for name, instead in REFUSED.items():
        if name in given or name in from_variables:
            variables = (variable for variable in SETTINGS[name].variables if os.environ.get(variable))
            source = f"the argument {name}" if name in given else f"the environment variable {next(variables)}"
            raise ConfigError(f"{source} is refused, because Ray's proxy has the connections: {instead}")
