"""Writes a safetensors file tensor by tensor, so that writing a large model needs little memory.

The safetensors package is not used, because it writes NumPy arrays, and NumPy has neither bfloat16 nor 8-bit floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bei_core.bfloat16 import to_bf16
from bei_core.checkpoint import Tensors
from bei_core.checkpoint.tensors import DTYPES

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write. `read` returns its values, and is called only when the tensor is written."""

    name: str
    dtype: str  # in safetensors' names, such as "BF16"
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @classmethod
    def of(cls, name: str, tensors: Tensors, dtype: str | None) -> Entry:
        """Returns the entry for a tensor of a checkpoint, cast to `dtype`; None keeps the stored dtype."""
        stored, shape = tensors.dtype(name), tuple(tensors.raw(name).shape)
        if dtype is None or dtype == stored:
            return cls(name, stored, shape, lambda: tensors.raw(name))
        return cls(name, dtype, shape, lambda: _cast(tensors.f32(name), dtype))

    @classmethod
    def f32(cls, name: str, value: Array) -> Entry:
        """Returns the entry for an f32 array in memory."""
        return cls(name, "F32", tuple(value.shape), lambda: value)

    @property
    def num_bytes(self) -> int:
        """The size of the tensor's data in bytes."""
        return np.dtype(DTYPES[self.dtype]).itemsize * math.prod(self.shape)


def write_tensors(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the tensors to a file (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        end = start + entry.num_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            file.write(np.ascontiguousarray(entry.read()).data)


def _cast(values: npt.NDArray[np.float32], dtype: str) -> Array:
    with np.errstate(over="ignore"):  # values beyond the range of f16 become infinite, as in torch
        return to_bf16(values) if dtype == "BF16" else values.astype(DTYPES[dtype], copy=False)
