"""The deployment: its options, and the settings that it takes and refuses."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from ray import serve
from ray.serve import Application

from bei_core.config.convert import unknown, value_of
from bei_core.config.settings import SETTINGS, Settings
from bei_core.config.sources import from_environ
from bei_core.errors import ConfigError
from bei_core.serve_ray.replica import Replica

log = logging.getLogger(__name__)

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
