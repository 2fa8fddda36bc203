"""Encodes replies as msgpack, with NumPy arrays as lists; see `docs/decisions/007-reply-formats.md` for its uses."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np


def packed(value: object) -> bytes:
    """Encodes a value as msgpack. NumPy arrays become lists; f32 arrays become lists of 32-bit floats."""
    return _ENCODER.encode(value)


def _plain(value: object) -> object:
    """Converts a NumPy array or number to a value that msgspec can encode."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32 and value.ndim > 0:
            return msgspec.Raw(_packed_floats(value))
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"this is a bug: a reply holds a {type(value).__name__}")


def _packed_floats(array: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Encodes an f32 array as msgpack lists, without msgspec, which would make a Python object of every number."""
    if array.ndim > 1:
        return list_head(len(array)) + b"".join(_packed_floats(part) for part in array)
    cells = np.empty((len(array), 5), np.uint8)
    cells[:, 0] = 0xCA  # msgpack's type byte of a 32-bit float
    cells[:, 1:] = array.astype(">f4").view(np.uint8).reshape(-1, 4)
    return list_head(len(array)) + cells.tobytes()


def list_head(length: int) -> bytes:
    """Returns the header of a msgpack list with `length` elements."""
    return _head(length, 0x90, 0xDC)


def object_head(length: int) -> bytes:
    """Returns the header of a msgpack map with `length` fields."""
    return _head(length, 0x80, 0xDE)


def _head(length: int, few: int, many: int) -> bytes:
    """Returns a header. Its first byte has `few` and the length below 16; it is `many` to 65,535, then the next one."""
    if length < 16:
        return bytes([few | length])
    return struct.pack(">BH", many, length) if length < 65_536 else struct.pack(">BI", many + 1, length)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
