"""Which route a body is for, by its fields: Truss, SageMaker, Vertex and Hugging Face have one path for all bodies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.route import Route
from bei_core.models.kind import Kind
from bei_core.serving.service import Service

_SHOWN = 200  # characters of what a client sent that an error repeats


class Shape(NamedTuple):
    """What tells the body of a route from those of others."""

    required: frozenset[str]  # the fields that it has
    objects: frozenset[str]  # those of them that are objects

    @classmethod
    def of(cls, route: Route) -> Shape:
        """The shape of a route's body."""
        fields = [field for field in msgspec.structs.fields(route.schema) if field.required] if route.schema else []
        objects = (field.encode_name for field in fields if _is_struct(field.type))
        return cls(frozenset(field.encode_name for field in fields), frozenset(objects))

    def matches(self, body: Mapping[str, Any]) -> bool:
        """Whether those of the fields that should be objects are objects, and no others."""
        return all(isinstance(body[name], dict) == (name in self.objects) for name in self.required)


class ByShape:
    """The routes of a table that a body sent to a path for all bodies may be for."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = {route.path: route for route in routes if route.by_shape}
        self.defaults: Mapping[Kind, Route] = {
            kind: route for route in self.routes.values() for kind in route.default_for
        }
        self._shapes = {path: Shape.of(route) for path, route in self.routes.items()}

    def default(self, service: Service) -> Route:
        """The route for a body whose fields allow several: that of the settings, else that of the model's kind."""
        path = service.settings.webserver_default_route
        return self.routes[path] if path else self.defaults[service.model.kind]

    def route_of(self, body: object, service: Service) -> Route:
        """The route for a decoded body that is sent to a model; raises as `choose` does."""
        return self.choose(body, self.default(service))

    def choose(self, body: object, default: Route) -> Route:
        """The default if the body has its required fields, else the first route of the table whose fields it has.

        Of several, one whose objects match comes first. A body that is no object is for the default, which refuses it.
        Raises ValidationError, which says what the routes require, for an object that fits none.
        """
        if not isinstance(body, dict):
            return default
        names = body.keys()
        fitting = [path for path in (default.path, *self._shapes) if names >= self._shapes[path].required]
        if not fitting:
            given = _quoted(names)[:_SHOWN] or "no fields"
            raise ValidationError(f"the body fits no route: it needs {self._needs()}; this one has {given}")
        return self.routes[next((path for path in fitting if self._shapes[path].matches(body)), fitting[0])]

    def _needs(self) -> str:
        """The required fields, each set of them with the first route that has it."""
        first = {shape.required: path for path, shape in reversed(self._shapes.items())}
        return ", or ".join(f"{_quoted(required)} as {path} does" for required, path in reversed(first.items()))


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(names))
