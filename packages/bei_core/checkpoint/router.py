"""A Router of sentence-transformers: several chains of modules (routes), of which BEI serves one.

It is the route that `encode` of a text takes without a task (`base/modules/router.py`): "text" if there is one, else
the default route. That is "document" in a model whose queries need no transformer, such as OpenSearch's inference-free
sparse encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bei_core.checkpoint.files import Json, load_json
from bei_core.errors import CheckpointError, UnsupportedModelError

ROUTER = "router_config.json"


class Route(NamedTuple):
    """The route that is served."""

    modules: list[Mapping[str, Json]]  # entries as in modules.json
    others: frozenset[str]  # the names of the other routes


def read_route(folder: Path, modules: Sequence[Mapping[str, Json]]) -> Route:
    """Returns the modules of modules.json; if the first one is a Router, those of its route are in its place.

    Raises CheckpointError for a malformed router_config.json, UnsupportedModelError if it has no default route, or
    routes by the kind of input, or for a Router that is not in the model's folder itself.
    """
    kind = str(modules[0].get("type")) if modules else ""
    if not (kind.startswith("sentence_transformers.") and kind.endswith(".Router")):
        return Route([*modules], frozenset())
    if modules[0].get("path") not in (None, "", ".", "./"):
        raise UnsupportedModelError(
            f"modules.json: a Router with a folder of its own ({modules[0]['path']!r}) is not supported"
        )
    path = folder / ROUTER
    if not path.is_file():
        raise CheckpointError(f"modules.json names a Router, and {path} is missing")
    content = load_json(path)
    try:
        routes, types, options = content["structure"], content["types"], content.get("parameters") or {}
        name = _route_of(routes, options)
        entries = [{"name": each, "path": each, "type": types[each]} for each in routes[name]]
        if not isinstance(routes[name], list) or not all(isinstance(entry["type"], str) for entry in entries):
            raise TypeError(name)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is malformed; it needs types, and structure with the default route") from error
    return Route([*entries, *modules[1:]], frozenset(routes) - {name})


def _route_of(routes: Mapping[str, Json], options: Mapping[str, Json]) -> str:
    """Returns the name of the route of a text without a task."""
    if options.get("route_mappings"):
        raise UnsupportedModelError(f"{ROUTER}: route_mappings (a route for a kind of input) is not supported")
    first = next(iter(routes.keys()), None) if options.get("allow_empty_key", True) else None
    name = "text" if "text" in routes else options.get("default_route") or first
    if name is None:
        raise UnsupportedModelError(
            f"{ROUTER}: there is no route text and no default_route, which are the only ones that BEI serves"
        )
    return str(name)
