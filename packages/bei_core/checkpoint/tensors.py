"""Tensors by name from files that are mapped into memory, and a reader of the safetensors format.

The safetensors package is not used because it gives no bfloat16 to NumPy. The format is simple: an 8-byte
little-endian length, a JSON header with each tensor's dtype, shape and offsets, then the data
(https://github.com/huggingface/safetensors#format). As in the package, a file is refused if offsets overlap, leave
holes or exceed the file, if a size does not match its shape, or if a name occurs twice.
"""

from __future__ import annotations

import difflib
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from bei_core.bfloat16 import from_bf16
from bei_core.checkpoint.files import parse_json
from bei_core.errors import CheckpointError

Array: TypeAlias = NDArray[Any]

# NumPy's dtype by safetensors' name. NumPy has no bfloat16 and no 8-bit floats: their bits are unsigned integers here.
DTYPES = {
    "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
MAX_DIMENSIONS = 32  # numpy 1's limit; numpy 2's is 64
_MAX_BYTES = 1 << 62  # the most bytes of a tensor; numpy's sizes are signed 64-bit integers
SAMPLE = 4096  # how many bytes of each tensor go into a local folder's digest


@dataclass(frozen=True)
class Entry:
    """The position of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # its first byte in the file
    file: mmap.mmap
    strides: tuple[int, ...] | None = None  # in bytes; None if it is contiguous


class Tensors(Mapping[str, Array]):
    """Tensors by name, each contiguous: a read-only view of the mapped file if possible, else a copy.

    The data of a tensor is read from the disk only when it is used.
    """

    def __init__(self, entries: Mapping[str, Entry], *, source: str) -> None:
        self._entries = entries
        self._source = source

    def __getitem__(self, name: str) -> Array:
        """Returns the tensor as stored: bfloat16 as the u16 of its bits, 8-bit floats as u8. Raises KeyError."""
        entry = self._entries[name]
        kind = np.dtype(DTYPES[entry.dtype])
        array: Array = np.ndarray(entry.shape, kind, entry.file, entry.start, entry.strides)
        return np.require(
            array, requirements=["C", "A"]
        )  # copies a tensor that is transposed or not aligned, which both formats allow

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """Returns the sorted names."""
        return sorted(self._entries)

    def dtype(self, name: str) -> str:
        """Returns the dtype by safetensors' name, such as F32 or BF16. Raises CheckpointError for an unknown name."""
        return self._entry(name).dtype

    def raw(self, name: str) -> Array:
        """Returns `self[name]`. For an unknown name, raises CheckpointError with the file and the most similar name."""
        self._entry(name)
        return self[name]

    def f32(self, name: str) -> NDArray[np.float32]:
        """Returns the tensor as float32: an F32 tensor as it is, others as a copy, which is exact except for F64.

        Raises CheckpointError for an unknown name, and for another dtype than BF16, F16, F32 and F64.
        """
        dtype, array = self.dtype(name), self.raw(name)
        if dtype == "BF16":
            return from_bf16(array)
        if dtype in {"F16", "F32", "F64"}:
            return array.astype(np.float32, copy=False)
        raise CheckpointError(f"{self._source}: {name} is {dtype}, not one of BF16, F16, F32, F64")

    def _entry(self, name: str) -> Entry:
        """Returns the position of a tensor. Raises CheckpointError for an unknown name."""
        if name not in self._entries:
            nearest = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; the nearest is {nearest[0]}" if nearest else ""
            raise CheckpointError(f"{self._source} has no tensor {name}{hint}")
        return self._entries[name]


def sample(path: Path) -> Iterator[bytes]:
    """Yields the size of a safetensors file, its header, and the first SAMPLE bytes of each tensor."""
    header, begin = read_header(path)
    yield path.stat().st_size.to_bytes(8, "little")
    with path.open("rb") as file:
        yield file.read(begin)
        for info in header.values():
            file.seek(begin + info.data_offsets[0])
            yield file.read(min(SAMPLE, info.data_offsets[1] - info.data_offsets[0]))


class _Info(msgspec.Struct, frozen=True):
    """One tensor of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]  # first byte and the byte after the last, counted from the end of the header


def entries(path: Path) -> dict[str, Entry]:
    """Returns the position of each tensor of a safetensors file. Raises CheckpointError if the file is damaged."""
    header, begin = read_header(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: Entry(dtype=info.dtype, shape=info.shape, start=begin + info.data_offsets[0], file=mapped)
        for name, info in header.items()
    }


def read_header(path: Path) -> tuple[dict[str, _Info], int]:
    """Returns the tensors of a safetensors file in the order of their data, and the offset of the data in bytes.

    Raises CheckpointError if the file is damaged.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        check_no_pointer(prefix, path)
        length, size = int.from_bytes(prefix, "little"), path.stat().st_size
        if len(prefix) < 8 or length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path} is truncated or not a safetensors file: it has {size} bytes")
        header = parse_json(file.read(length), path)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    infos = {name: checked_info(info, name, path) for name, info in header.items() if name != "__metadata__"}
    infos = dict(sorted(infos.items(), key=lambda item: item[1].data_offsets))
    _check_layout(infos, path, size - 8 - length)
    return infos, 8 + length


def check_no_pointer(prefix: bytes, path: Path) -> None:
    """Raises CheckpointError if `prefix`, the first 8 bytes of a file of weights, is that of a git-lfs pointer."""
    if prefix == b"version ":
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run git lfs pull in its repository")


def checked_info(value: object, name: str, path: Path) -> _Info:
    """Returns a tensor of a header. Raises CheckpointError if its dtype, shape or offsets are not valid."""
    try:
        info = msgspec.convert(value, _Info)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: the header's {name}: {error}") from error
    if info.dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} is {info.dtype}; known are {', '.join(DTYPES)}")
    if len(info.shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{path}: {name} has {len(info.shape)} dimensions; at most {MAX_DIMENSIONS} are possible")
    begin, end = info.data_offsets
    width = np.dtype(DTYPES[info.dtype]).itemsize
    if math.prod(max(dimension, 1) for dimension in info.shape) * width > _MAX_BYTES:  # numpy refuses it despite a 0
        raise CheckpointError(f"{path}: {name} has a shape of more than {_MAX_BYTES} bytes")
    if min((begin, *info.shape)) < 0 or end - begin != math.prod(info.shape) * width:
        raise CheckpointError(f"{path}: {name} is {info.dtype} {list(info.shape)} but takes bytes {begin} to {end}")
    return info


def _check_layout(infos: Mapping[str, _Info], path: Path, size: int) -> None:
    """Raises CheckpointError unless the tensors, in order, fill `size` bytes of data without holes or overlaps."""
    position = 0
    for name, info in infos.items():
        begin, end = info.data_offsets
        if begin != position:
            raise CheckpointError(
                f"{path}: {name} begins at byte {begin}, not at {position}, where the previous tensor ends"
            )
        position = end
    if position > size:
        raise CheckpointError(f"{path} is truncated: {position - size} of its {position} bytes of tensors are missing")
    if position < size:
        raise CheckpointError(f"{path} has {size - position} bytes that belong to no tensor")
