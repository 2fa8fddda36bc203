"""Chooses the route by the fields of a body.

Truss, SageMaker, Vertex AI and Hugging Face's clients send the bodies of all routes to one path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.route import Route
from bei_core.models.kind import Kind
from bei_core.serving.service import Service

_SHOWN = 200  # the most characters of the request that an error message quotes


class RequiredFields(NamedTuple):
    """The required fields of a route's body, which tell it from the bodies of other routes."""

    required: frozenset[str]  # names of the required fields
    objects: frozenset[str]  # names of the required fields whose values are JSON objects

    @classmethod
    def of(cls, route: Route) -> RequiredFields:
        """Returns the required fields of the schema of a route's body."""
        fields = [field for field in msgspec.structs.fields(route.schema) if field.required] if route.schema else []
        objects = (field.encode_name for field in fields if _is_struct(field.type))
        return cls(frozenset(field.encode_name for field in fields), frozenset(objects))

    def matches(self, body: Mapping[str, Any]) -> bool:
        """Returns whether those required fields are JSON objects that must be objects, and no others."""
        return all(isinstance(body[name], dict) == (name in self.objects) for name in self.required)


class FieldRouter:
    """Chooses a route for a body that is sent to a path that takes any body."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = {route.path: route for route in routes if route.by_fields}
        self.defaults: Mapping[Kind, Route] = {
            kind: route for route in self.routes.values() for kind in route.default_for
        }
        self._required = {path: RequiredFields.of(route) for path, route in self.routes.items()}

    def default(self, service: Service) -> Route:
        """Returns the route for a body that fits several: that of the settings, else that for the model's kind."""
        path = service.settings.webserver_default_route
        return self.routes[path] if path else self.defaults[service.model.kind]

    def route_of(self, body: object, service: Service) -> Route:
        """Returns the route for a decoded body that is sent to a model; raises the same errors as `choose`."""
        return self.choose(body, self.default(service))

    def choose(self, body: object, default: Route) -> Route:
        """Returns the route whose required fields are all in the body.

        If several routes have that, the first one whose fields `RequiredFields.matches` is chosen, else the first one.
        `default` comes before the others, which have the order of the table. A body that is not a JSON object is given
        to `default`, whose schema refuses it. Raises ValidationError listing the required fields if no route has them.
        """
        if not isinstance(body, dict):
            return default
        names = body.keys()
        fitting = [path for path in (default.path, *self._required) if names >= self._required[path].required]
        if not fitting:
            given = _quoted(names)[:_SHOWN] or "no fields"
            raise ValidationError(f"the body fits no route: it needs {self._needs()}; this one has {given}")
        return self.routes[next((path for path in fitting if self._required[path].matches(body)), fitting[0])]

    def _needs(self) -> str:
        """Returns the required fields of all routes, each set with the first route that has it, for an error."""
        first = {fields.required: path for path, fields in reversed(self._required.items())}
        return ", or ".join(f"{_quoted(required)} as {path} does" for required, path in reversed(first.items()))


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(names))
