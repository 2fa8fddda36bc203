"""The names by which clients may call the models of a server."""

from __future__ import annotations

from collections.abc import Sequence

from bei_core.errors import ConfigError
from bei_core.serving.service import Service
from bei_core.storage.backends import redact

# NVIDIA's clients of OpenAI's API put the input type behind the name of the model, because they cannot send the field.
INPUT_TYPES = ("-query", "-passage")


def without_input_type(name: str) -> str:
    """Returns a model's name without the input type at its end."""
    return name.rpartition("-")[0] if name.endswith(INPUT_TYPES) else name


def by_name(services: Sequence[Service]) -> dict[str, Service]:
    """Maps each name that clients may use to its service.

    A model has its served name, its full `model_id`, and the last part of that after the slash. A name that two models
    share is left out, except for the served name.

    Raises ConfigError if two models are served under one name.
    """
    found: dict[str, Service] = {}
    for service in services:
        if found.setdefault(service.name, service) is not service:
            raise ConfigError(f"two models have the name {service.name}; write name=model_id to tell them apart")
    full = [redact(service.settings.model_id or service.name) for service in services]
    for aliases in (full, [name.rpartition("/")[2] for name in full]):
        for alias, service in zip(aliases, services, strict=True):
            if aliases.count(alias) == 1:
                found.setdefault(alias, service)
    return found
