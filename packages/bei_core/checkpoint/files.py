"""Names and JSON that may come from a download: checked before they are used."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from bei_core.errors import CheckpointError

Json: TypeAlias = Any  # whatever a file holds


def inside(name: str, what: str) -> str:
    """A relative name that stays in its folder. Raises CheckpointError: the name may come from a downloaded file."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{what} is {name!r}, which is not inside the model's folder")
    return name


def load_json(path: Path) -> Json:
    """What a JSON file holds. Raises CheckpointError naming a file that is malformed."""
    return parse_json(path.read_bytes(), path)


def parse_json(text: bytes, path: Path) -> Json:
    """JSON as Python reads it, with the NaN and Infinity that transformers writes. Raises CheckpointError."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{path} is not JSON: {fault}") from fault


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different. Raises ValueError: which of two is meant, nobody can tell."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found
