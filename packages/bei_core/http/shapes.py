"""Chooses the route by the fields of a body, because Truss, SageMaker, Vertex and Hugging Face use one path for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.route import Route
from bei_core.models.kind import Kind
from bei_core.serving.service import Service

_SHOWN = 200  # the most characters of the request that an error message quotes


class Shape(NamedTuple):
    """The fields by which the body of one route is told from the bodies of others."""

    required: frozenset[str]  # names of the required fields
    objects: frozenset[str]  # names of the required fields whose values are JSON objects

    @classmethod
    def of(cls, route: Route) -> Shape:
        """Returns the shape of a route's body, from the required fields of its schema."""
        fields = [field for field in msgspec.structs.fields(route.schema) if field.required] if route.schema else []
        objects = (field.encode_name for field in fields if _is_struct(field.type))
        return cls(frozenset(field.encode_name for field in fields), frozenset(objects))

    def matches(self, body: Mapping[str, Any]) -> bool:
        """Returns whether exactly those required fields are JSON objects that must be objects."""
        return all(isinstance(body[name], dict) == (name in self.objects) for name in self.required)


class ByShape:
    """Chooses a route for a body that is sent to a path that takes any body."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = {route.path: route for route in routes if route.by_shape}
        self.defaults: Mapping[Kind, Route] = {
            kind: route for route in self.routes.values() for kind in route.default_for
        }
        self._shapes = {path: Shape.of(route) for path, route in self.routes.items()}

    def default(self, service: Service) -> Route:
        """Returns the route for a body that fits several: that of the settings, else that for the model's kind."""
        path = service.settings.webserver_default_route
        return self.routes[path] if path else self.defaults[service.model.kind]

    def route_of(self, body: object, service: Service) -> Route:
        """Returns the route for a decoded body that is sent to a model; raises the same errors as `choose`."""
        return self.choose(body, self.default(service))

    def choose(self, body: object, default: Route) -> Route:
        """Returns the route whose required fields are all in the body.

        If several routes fit, those whose fields are also objects where required are preferred; among them, `default`
        comes first, then the order of the table. A body that is not an object goes to `default`, which refuses it.
        Raises ValidationError, which lists the required fields, if no route fits.
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
        """Describes each set of required fields, with the first route that requires it, for an error message."""
        first = {shape.required: path for path, shape in reversed(self._shapes.items())}
        return ", or ".join(f"{_quoted(required)} as {path} does" for required, path in reversed(first.items()))


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(names))
