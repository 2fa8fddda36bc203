"""Checks of untrusted file names and JSON files."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from bei_core.errors import CheckpointError

Json: TypeAlias = Any  # any JSON value

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 2048  # Linux takes 4096 with the path of the folder


def inside(name: str, what: str) -> str:
    """The name, unchanged. Raises CheckpointError unless it is a relative path inside the model's folder.

    A path that is too long for Linux is refused, too.
    """
    parts = PurePosixPath(name).parts
    if len(os.fsencode(name)) > _MAX_PATH_BYTES or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts):
        raise CheckpointError(f"{what} is {name[:40]!r}..., which is too long for a file")
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{what} is {name!r}, which is not inside the model's folder")
    return name


def load_json(path: Path) -> Json:
    """The content of a JSON file. Raises CheckpointError, naming the file, if it is malformed."""
    return parse_json(path.read_bytes(), path)


def parse_json(text: bytes, path: Path) -> Json:
    """The value of a JSON text, in which transformers may write NaN and Infinity. Raises CheckpointError."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
        json.dumps(found, ensure_ascii=False).encode()  # not possible for half of a surrogate pair
        return found
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict. Raises ValueError for a name that occurs twice, which is ambiguous."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:200]!r} occurs twice")
        found[name] = value
    return found
