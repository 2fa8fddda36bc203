"""A safetensors file written tensor by tensor, so that a model of any size passes through little memory.

The safetensors package writes from numpy too, but numpy has neither bfloat16 nor 8-bit floats.
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

from bei_core.checkpoint import Tensors

Array = npt.NDArray[Any]

_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
# What `dtype` in config.json is called in a safetensors file.
_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written; `read` gives its elements when their turn comes."""

    name: str
    dtype: str  # as the format calls it
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @classmethod
    def of(cls, name: str, tensors: Tensors, dtype: str | None) -> Entry:
        """A tensor of a file, in `dtype`, or as it is stored where that is None."""
        stored, shape = tensors.dtype(name), tuple(tensors.raw(name).shape)
        wanted = stored if dtype is None else _NAMES[dtype]
        if wanted == stored:
            return cls(name, stored, shape, lambda: tensors.raw(name))
        return cls(name, wanted, shape, lambda: _cast(tensors.f32(name), wanted))

    @classmethod
    def f32(cls, name: str, value: Array) -> Entry:
        """A float32 tensor that is in memory."""
        return cls(name, "F32", tuple(value.shape), lambda: value)

    @property
    def num_bytes(self) -> int:
        """Of its elements."""
        return _BYTES[self.dtype] * math.prod(self.shape)


def write_tensors(path: Path, entries: Sequence[Entry]) -> None:
    """The file of these tensors (https://github.com/huggingface/safetensors#format)."""
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
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):  # beyond f16's range: infinity, as torch has it
            return values.astype(np.float16)
    return to_bf16(values)


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, of two as near the even one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
