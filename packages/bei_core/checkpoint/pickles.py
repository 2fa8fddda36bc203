"""Tensors by name from a file that torch.save wrote, without torch and without running the pickle in it.

The file is a zip archive (torch 2.15, `torch/serialization.py`): `data.pkl` is a pickle of the tensors' names, dtypes,
shapes and strides, and `data/0`, `data/1`, … are the bytes of their storages. A pickle is a program that may call any
function. This module interprets only the operations that torch.save writes for a dict of tensors, and only on plain
values. Such a pickle calls two functions, and this module has its own code for both. It refuses every other operation
and name. The bytes of a storage are read only when the tensor is used, so a false size in a file allocates no memory.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bei_core.checkpoint.tensors import DTYPES, SAMPLE, Entry, check_no_pointer, checked_info
from bei_core.errors import CheckpointError

CONVERT = (
    "convert the model once, on a machine that may run its code: transformers.AutoModel.from_pretrained(FOLDER)"
    ".save_pretrained(FOLDER, safe_serialization=True); of a reranker or classifier, AutoModelForSequenceClassification"
)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of a file from before torch 1.6
_MAX_HEADER = 1 << 20  # the most bytes of data.pkl (about 200 per tensor), and of the archive's list of members
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name

_STORAGES = {
    "torch BFloat16Storage": "BF16", "torch DoubleStorage": "F64", "torch FloatStorage": "F32",
    "torch HalfStorage": "F16", "torch BoolStorage": "BOOL", "torch ByteStorage": "U8", "torch CharStorage": "I8",
    "torch ShortStorage": "I16", "torch IntStorage": "I32", "torch LongStorage": "I64",
}  # fmt: skip
_ORDERED_DICT, _REBUILD_TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _RefusedError(ValueError):
    """The file is refused; the message is the reason."""


class _Global(NamedTuple):
    """A class or function that the pickle names."""

    name: str


class _Storage(NamedTuple):
    """The position in the file of the data of one or more tensors; `dtype` is the name of safetensors."""

    dtype: str
    start: int  # its first byte in the file
    num_elements: int


class _Tensor(NamedTuple):
    """A tensor inside its storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def pickled_entries(path: Path) -> dict[str, Entry]:
    """Returns the position of each tensor of a file that torch.save wrote, in the format of torch 1.6 and later.

    Tensors may share a storage and may be transposed. Raises CheckpointError with the path and the reason.
    """
    try:
        members = _Members.of(path)
        tensors = _interpret(members.read("data.pkl", _MAX_HEADER), members.storage)
        return {name: _entry(name, tensor, members.file, path) for name, tensor in tensors.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, _RefusedError) else f"its data.pkl is malformed: {error!r:.200}"
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def sample_pickled(path: Path) -> Iterator[bytes]:
    """Yields the size of a file of torch.save, its pickle, and the start of each tensor. Raises CheckpointError."""
    found = pickled_entries(path)
    yield path.stat().st_size.to_bytes(8, "little")
    yield _Members.of(path).read("data.pkl", _MAX_HEADER)
    for entry in found.values():
        yield entry.file[entry.start : entry.start + SAMPLE]


def _entry(name: str, tensor: _Tensor, file: mmap.mmap, path: Path) -> Entry:
    """Returns the position of a tensor. Raises _RefusedError unless it is inside its storage.

    A tensor must not have more elements than its storage, so that a copy of it is not larger than the file. Raises
    CheckpointError for a shape that NumPy does not support.
    """
    storage, offset, shape, strides = tensor
    count, width = math.prod(shape), np.dtype(DTYPES[storage.dtype]).itemsize
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else 0
    if max(offset + span, count) > storage.num_elements:
        raise _RefusedError(f"{name!r:.100} has shape {shape!s:.200}, which its storage is too small for")
    start = storage.start + offset * width
    offsets = (start, start + count * width)
    checked_info({"dtype": storage.dtype, "shape": shape, "data_offsets": offsets}, f"{name!r:.100}", path)
    contiguous = [*accumulate(reversed(shape[1:]), mul, initial=1)][::-1] if shape else []
    is_contiguous = all(size <= 1 or own == of for size, own, of in zip(shape, strides, contiguous, strict=True))
    in_bytes = None if is_contiguous or not count else tuple(stride * width for stride in strides)
    return Entry(storage.dtype, shape, start, file, in_bytes)


class _Limited(io.FileIO):
    """A file that refuses large reads, because zipfile reads an archive's whole list of members into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns the next bytes. Raises ValueError if `size` is more than _MAX_HEADER."""
        if (size or 0) > _MAX_HEADER:
            raise ValueError(f"its list of members has {size} bytes; at most {_MAX_HEADER} are read")
        return super().read(size) or b""


class _Members(NamedTuple):
    """The members of the archive by name, without the folder that contains all of them."""

    file: mmap.mmap
    by_name: Mapping[str, zipfile.ZipInfo]

    @classmethod
    def of(cls, path: Path) -> _Members:
        """Returns the members of a file. Raises _RefusedError unless it is a zip archive with little-endian numbers."""
        try:
            with _Limited(path) as file:
                begin = file.read(len(_LEGACY))
                check_no_pointer(begin[:8], path)
                if begin == _LEGACY:
                    raise _RefusedError(f"it has torch.save's format of before torch 1.6, a bare pickle; {CONVERT}")
                archive = zipfile.ZipFile(file)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                found = cls(mapped, {info.filename.partition("/")[2]: info for info in archive.infolist()})
        except _RefusedError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError) as error:
            raise _RefusedError(f"it is no zip archive, as torch 1.6 and later write it ({error})") from error
        if "byteorder" in found.by_name and found.read("byteorder", 16) != b"little":
            raise _RefusedError("its numbers are not little-endian")
        return found

    def start(self, name: str) -> int:
        """Returns the offset of a member's data in the file. Raises _RefusedError if it is missing or compressed."""
        member = self.by_name.get(name)
        if member is None:
            raise _RefusedError(f"it has no member {name}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _RefusedError(f"its member {name} is compressed or encrypted")
        header = self.file[member.header_offset : member.header_offset + _LOCAL_HEADER]
        lengths = (
            int.from_bytes(header[at : at + 2], "little") for at in (26, 28)
        )  # of the member's name and of its extra field
        start = member.header_offset + _LOCAL_HEADER + sum(lengths)
        if member.header_offset < 0 or not header.startswith(b"PK\3\4") or start + member.file_size > len(self.file):
            raise _RefusedError(f"its member {name} is not inside the file")
        return start

    def read(self, name: str, limit: int) -> bytes:
        """Returns the data of a member. Raises _RefusedError if it has more than `limit` bytes."""
        start, size = self.start(name), self.by_name[name].file_size
        if size > limit:
            raise _RefusedError(f"its member {name} has {size} bytes; at most {limit} are read")
        return self.file[start : start + size]

    def storage(self, persistent_id: tuple[Any, ...]) -> _Storage:
        """Returns the storage of a persistent id: ("storage", class, member, device, number of elements)."""
        _, kind, key, _, count = persistent_id
        if not isinstance(key, str):
            raise _RefusedError("data.pkl has a storage whose name is not a text")
        dtype, name = _STORAGES[kind.name], f"data/{key}"
        start, size = self.start(name), count * np.dtype(DTYPES[dtype]).itemsize
        if size > self.by_name[name].file_size:
            raise _RefusedError(f"its member {name} has fewer than the {size} bytes that data.pkl says")
        return _Storage(dtype, start, count)


def _interpret(pickle: bytes, storage: Callable[[tuple[Any, ...]], _Storage]) -> dict[str, _Tensor]:
    """Returns the dict of tensors that a pickle builds; `storage` returns the storage of a persistent id.

    Raises _RefusedError for an operation or a value that a dict of tensors does not need. A malformed pickle raises
    ValueError, LookupError, TypeError or AttributeError, from the Python code of its operations.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(start: int) -> tuple[Any, ...]:
        taken = tuple(stack[start:])
        del stack[start:]
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        match opcode.name:
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "GLOBAL":
                stack.append(_global(argument))
            case "REDUCE":
                function, arguments = take(len(stack) - 2)
                stack.append(_call(function, arguments))
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "BUILD":
                stack.pop()  # the attributes of the dict are ignored: a state_dict has the versions of its modules
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(take(marks.pop()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(take(len(stack) - int(opcode.name[-1])))
            case "SETITEM" | "SETITEMS":
                _set_items(take(len(stack) - 2 if opcode.name == "SETITEM" else marks.pop()), stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "PROTO" | "STOP":
                pass
            case name:
                raise _RefusedError(f"data.pkl has the operation {name}")
    return _checked(stack.pop())


def _global(name: str) -> _Global:
    """Returns the class or function `name`. Raises _RefusedError if a dict of tensors does not need it."""
    if name not in {_ORDERED_DICT, _REBUILD_TENSOR, *_STORAGES}:
        raise _RefusedError(f"data.pkl names {name.replace(' ', '.')!r:.100}, which a dict of tensors does not need")
    return _Global(name)


def _call(function: object, arguments: tuple[Any, ...]) -> dict[str, Any] | _Tensor:
    """Returns the result of a function: an empty dict or a tensor. Raises _RefusedError for other functions."""
    if function == _Global(_ORDERED_DICT) and arguments == ():
        return {}
    if function == _Global(_REBUILD_TENSOR):
        return _tensor(*arguments[:4])
    raise _RefusedError("data.pkl calls what is not one of the two functions of a dict of tensors")


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> _Tensor:
    """Returns the tensor that `_rebuild_tensor_v2` makes. Raises _RefusedError for arguments of other types."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
        raise _RefusedError("data.pkl has a tensor without a storage, or with a size that is not a number from 0")
    return _Tensor(storage, offset, shape, strides)


def _set_items(pairs: tuple[Any, ...], target: dict[str, Any]) -> None:
    """Adds `pairs` (name, value, name, value …) to a dict. Raises _RefusedError for a name that is not a text."""
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(name, str) or not isinstance(target, dict):
            raise _RefusedError("data.pkl has a name of a tensor that is not a text")
        target[name] = value


def _checked(tensors: object) -> dict[str, _Tensor]:
    """Returns `tensors` unchanged. Raises _RefusedError unless it is a dict of tensors."""
    if not isinstance(tensors, dict):
        raise _RefusedError("data.pkl has a value that is not a dict of tensors")
    wrong = [name for name, value in tensors.items() if not isinstance(value, _Tensor)]
    if wrong:
        raise _RefusedError(f"data.pkl: {wrong[0]!r:.100} is not a tensor")
    return tensors
