"""BEI on Ray Serve: `serve run bei_core.serve_ray:app model_id=BAAI/bge-small-en-v1.5 max_replicas=8`.

The routes are those of `bei serve`. Ray Serve scales the replicas by the number of waiting and running requests. The
header `serve_multiplexed_model_id` chooses another model for a request; Ray sends the request to a replica that has
loaded this model, if there is one.
Source: docs.ray.io, "Serve: Autoscaling" and "Model multiplexing".
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import msgspec
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError
from bei_core.http.app import App, make_app
from bei_core.metrics import Metrics
from bei_core.serving.service import Service

_NUM_MODELS = 4  # the most models of one replica, besides its own


class Scaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the deployment, besides the settings of the model."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 32.0  # per replica; if there are more, Ray starts another replica
    max_ongoing_requests: int = 512  # per replica; if there are more, they wait in Ray's proxy
    num_cpus: float = 1.0
    num_gpus: float = 0.0


class LoadedModel:
    """A model that a replica has loaded. Ray drops the least recently used one when there are too many."""

    def __init__(self, settings: Settings) -> None:
        self._services = Service.open_all(settings, Metrics())
        self.app: App = make_app(*self._services)[0]

    def __del__(self) -> None:
        for service in getattr(self, "_services", ()):
            service.close()


class Replica:
    """One replica: its own model, and the models that requests have chosen by the header."""

    def __init__(self, settings: Settings) -> None:
        """Opens the model. Ray sends requests to the replica only afterwards. Raises StartError."""
        self._settings = settings
        self._own = LoadedModel(settings)

    async def __call__(self, request: Request) -> Response:
        """Answers any route of `bei serve`."""
        model_id = serve.get_multiplexed_model_id()
        model = await self.model(model_id) if model_id else self._own
        return await model.app.respond(request, request.method, request.scope["path"])

    @serve.multiplexed(max_num_models_per_replica=_NUM_MODELS)  # type: ignore[untyped-decorator,unused-ignore]
    async def model(self, model_id: str) -> LoadedModel:
        """Loads the model of this name on a thread and returns it."""
        settings = msgspec.structs.replace(self._settings, model_id=model_id, served_model_name=None)
        return await asyncio.get_running_loop().run_in_executor(None, LoadedModel, settings)

    async def check_health(self) -> None:
        """Raises if the replica is broken, such as when its engine hangs. Ray then replaces the replica."""
        await self._own.app.check()


def app(arguments: Mapping[str, Any]) -> Application:
    """Returns the application. `arguments` are settings of `bei serve` or options of `Scaling`. Raises ConfigError."""
    names = Scaling.__struct_fields__
    given = {name: value for name, value in arguments.items() if name in names}
    try:
        scaling = msgspec.convert(given, Scaling, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"an option of the deployment is wrong: {error}") from error
    rest = {name: value for name, value in arguments.items() if name not in names}
    deployment: Any = serve.deployment(
        Replica,
        name="bei",
        max_ongoing_requests=scaling.max_ongoing_requests,
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
        },
    )
    application: Application = deployment.bind(Settings.load(rest, os.environ))
    return application
