"""Reads and writes the files of expected outputs in `tests/data/expected`, one for each family."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from tests.golden.checkpoints import Description

Arrays = dict[str, npt.NDArray[Any]]

ROUNDING = 5e-5  # of f32 numbers near 1; the tests' smallest tolerance is 1e-4


def save(folder: Path, found: list[tuple[Description, Arrays]]) -> tuple[int, list[str]]:
    """Writes the arrays of the cases, one file per family.

    If new arrays differ from the stored ones only by rounding, as on another kind of processor, the stored ones stay,
    so that `git diff` shows only changes to accept. Returns the number of unchanged cases, and the names of the others.
    """
    families: dict[Path, Arrays] = defaultdict(dict)
    changed = []
    for case, arrays in found:
        path = folder / f"{case.group}/{case.family}.safetensors"
        earlier = load(path, case.name)
        if not (kept := is_same(arrays, earlier)):
            changed.append(case.name)
        families[path] |= {f"{case.name}:{name}": value for name, value in (earlier if kept else arrays).items()}
    for path, arrays in families.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path)
    return len(found) - len(changed), changed


def load(path: Path, name: str) -> Arrays:
    """Returns the stored arrays of a case; empty if there are none."""
    stored = load_file(path) if path.is_file() else {}
    return {key.removeprefix(f"{name}:"): value for key, value in stored.items() if key.startswith(f"{name}:")}


def save_json(path: Path, value: dict[str, Any]) -> None:
    """Writes one line per entry, unless the file differs from `value` only by rounding."""
    if path.is_file() and is_same_json(value, json.loads(path.read_text(encoding="utf-8"))):
        return
    lines = [f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def is_same(new: Arrays, old: Arrays) -> bool:
    """Whether the arrays are equal, apart from rounding."""
    return new.keys() == old.keys() and all(_is_same_array(new[name], old[name]) for name in new)


def _is_same_array(new: np.ndarray, old: np.ndarray) -> bool:
    if new.dtype != old.dtype or new.shape != old.shape:
        return False
    if new.dtype.kind != "f":
        return bool(np.array_equal(new, old))
    return bool(np.allclose(new, old, rtol=ROUNDING, atol=ROUNDING))


def is_same_json(new: object, old: object) -> bool:
    """Whether the values are equal, apart from rounding."""
    if isinstance(new, float) and isinstance(old, float):
        return math.isclose(new, old, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if isinstance(new, dict) and isinstance(old, dict):
        return new.keys() == old.keys() and all(is_same_json(new[name], old[name]) for name in new)
    if isinstance(new, list) and isinstance(old, list):
        return len(new) == len(old) and all(map(is_same_json, new, old))
    return new == old
