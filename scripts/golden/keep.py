"""Keeps what an earlier run expected where the new run differs from it by rounding alone, as on another processor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load

NAMES = ("expected.safetensors", "aggregation.json")
ROUNDING = 5e-5  # of numbers about 1, in f32; the tests' tolerances begin at 1e-4

Expectations = dict[Path, bytes]


def expectations(folder: Path) -> Expectations:
    """What the cases under a folder expect."""
    return {path: path.read_bytes() for name in NAMES for path in sorted(folder.rglob(name))}


def keep(earlier: Expectations) -> int:
    """How many files got their earlier bytes back."""
    kept = [path for path, content in earlier.items() if path.is_file() and is_same(path, content)]
    for path in kept:
        path.write_bytes(earlier[path])
    return len(kept)


def is_same(path: Path, earlier: bytes) -> bool:
    """Whether the file says what it said earlier, but for rounding."""
    now = path.read_bytes()
    if path.suffix == ".json":
        return _same_json(json.loads(now), json.loads(earlier))
    new, old = load(now), load(earlier)
    return new.keys() == old.keys() and all(_same_array(new[name], old[name]) for name in new)


def _same_array(new: np.ndarray, old: np.ndarray) -> bool:
    if new.dtype != old.dtype or new.shape != old.shape:
        return False
    if new.dtype.kind != "f":
        return bool(np.array_equal(new, old))
    return bool(np.allclose(new, old, rtol=ROUNDING, atol=ROUNDING))


def _same_json(new: object, old: object) -> bool:
    if isinstance(new, float) and isinstance(old, float):
        return math.isclose(new, old, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if isinstance(new, dict) and isinstance(old, dict):
        return new.keys() == old.keys() and all(_same_json(new[name], old[name]) for name in new)
    if isinstance(new, list) and isinstance(old, list):
        return len(new) == len(old) and all(map(_same_json, new, old))
    return new == old
