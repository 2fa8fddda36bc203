"""Names and JSON from downloads, checked before they are used."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from bei_core.errors import CheckpointError

Json: TypeAlias = Any  # whatever a file holds


def inside(name: str, what: str) -> str:
    """The name itself, which is relative and stays in its folder. Raises CheckpointError otherwise."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{what} is {name!r}, which is not inside the model's folder")
    return name


def load_json(path: Path) -> Json:
    """The content of a JSON file. Raises CheckpointError naming a file that is malformed."""
    return parse_json(path.read_bytes(), path)


def parse_json(text: bytes, path: Path) -> Json:
    """JSON as Python reads it, with the NaN and Infinity that transformers writes. Raises CheckpointError."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names all differ. Raises ValueError otherwise: nobody can tell which of two is meant."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:200]!r} is there twice")
        found[name] = value
    return found
