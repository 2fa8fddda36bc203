"""A Router of sentence-transformers: several chains of modules (routes), of which BEI serves one.

It is the route that `encode` takes without a task (`base/modules/router.py`): "document" in a model whose queries need
no transformer, such as OpenSearch's inference-free sparse encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bei_core.checkpoint.files import Json, inside, load_json
from bei_core.errors import CheckpointError, UnsupportedModelError

ROUTER = "router_config.json"


class Route(NamedTuple):
    """The route that is served."""

    modules: list[Mapping[str, Json]]  # entries as in modules.json
    others: frozenset[str]  # the names of the other routes


def read_route(folder: Path, modules: Sequence[Mapping[str, Json]]) -> Route:
    """Returns the modules of modules.json; if the first one is a Router, those of its route are in its place.

    Raises CheckpointError for a malformed router_config.json, UnsupportedModelError if it has no default route, or
    routes by the kind of input.
    """
    kind = str(modules[0].get("type")) if modules else ""
    if not (kind.startswith("sentence_transformers.") and kind.endswith(".Router")):
        return Route([*modules], frozenset())
    place = str(modules[0].get("path") or "")
    path = folder / (inside(place, "a module of modules.json") if place else "") / ROUTER
    if not path.is_file():
        raise CheckpointError(f"modules.json names a Router, and {path} is missing")
    content = load_json(path)
    try:
        routes, types, options = content["structure"], content["types"], content.get("parameters") or {}
        name = _route_of(routes, options)
        entries = [{"name": each, "path": f"{place}/{each}".strip("/"), "type": types[each]} for each in routes[name]]
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is malformed; it needs types, and structure with the default route") from error
    return Route([*entries, *modules[1:]], frozenset(routes) - {name})


def _route_of(routes: Mapping[str, Json], options: Mapping[str, Json]) -> str:
    """Returns the name of the route without a task."""
    if options.get("route_mappings"):
        raise UnsupportedModelError(f"{ROUTER}: route_mappings (a route for a kind of input) is not supported")
    first = next(iter(routes.keys()), None) if options.get("allow_empty_key", True) else None
    name = options.get("default_route") or first
    if name is None:
        raise UnsupportedModelError(f"{ROUTER}: there is no default_route, which is the only one that BEI serves")
    return str(name)
