"""The names by which clients may call the models of a server."""

from __future__ import annotations

from collections.abc import Sequence

from bei_core.errors import ConfigError, NotFoundError
from bei_core.serving.service import Service
from bei_core.storage.backends import redact

# NVIDIA's clients of OpenAI's API put the input type behind the name of the model, because they cannot send the field.
INPUT_TYPES = ("-query", "-passage")

_NO_MODEL = frozenset({"", "not-required"})  # Baseten's clients send "not-required" where a name is mandatory


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


class Names:
    """The models of a server, by the names that clients may use. Raises ConfigError as `by_name` does."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = services
        self._by_name = by_name(services)

    def chosen(self, name: object) -> Service | None:
        """Returns the model that the `model` of a request chooses; None if it chooses none, as where there is only one.

        Raises NotFoundError for a name that is not served.
        """
        is_name = len(self.services) > 1 and isinstance(name, str) and name not in _NO_MODEL
        return self.find(str(name)) if is_name else None

    def get(self, name: str) -> Service | None:
        """Returns the model with this name, which may end with an input type of NVIDIA's; None if there is none."""
        found = self._by_name.get(name)
        return self._by_name.get(name.rpartition("-")[0]) if found is None and name.endswith(INPUT_TYPES) else found

    def find(self, name: str) -> Service:
        """Returns the model with this name, as `get` does. Raises NotFoundError if there is none."""
        found = self.get(name)
        if found is None:
            known = ", ".join(service.name for service in self.services)
            raise NotFoundError(f"there is no model {name!r}; known are {known}", param="model")
        return found
