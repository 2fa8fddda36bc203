"""Tensors of a checkpoint in their stored dtype, and their constants in a graph.

bfloat16 and float16 stay 16 bits wide in the engine folder and in memory. The nodes that are made here give f32 to the
operations after them: weights of linear layers by a Convert, which the CPU plugin fuses into the layer; embeddings by a
conversion of the gathered rows (docs/decisions/025-weights.md).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from numpy.lib.mixins import NDArrayOperatorsMixin
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.bfloat16 import from_bf16
from bei_core.checkpoint import Tensors
from bei_core.engines.openvino.memory_map import name_of, ranges

Array = npt.NDArray[Any]

_TYPES = {"BF16": Type.bf16, "F16": Type.f16, "F32": Type.f32}
_NARROW = (Type.bf16, Type.f16)

# Embedding tables with fewer rows are widened to f32 when the engine is built: a lookup of f32 is faster.
_MIN_NARROW_ROWS = 16384

# An f32 engine widens its 16-bit weights when it is loaded if they have at most this many bytes in total.
_MAX_WIDENED_BYTES = 256 << 20

# The files of a checkpoint that are mapped: safetensors, and pickles of PyTorch.
_MAPPED_FILES = (".safetensors", ".bin")

_ONE_IN_BF16 = 0x3F80

# The key in a Convert's runtime info that makes the CPU plugin widen its weights in the layer, not in advance.
_DECOMPRESSION = "decompression_0"


class StoredTensor(NDArrayOperatorsMixin):
    """A tensor of a checkpoint in its stored dtype. numpy sees an f32 array, which is computed at each use.

    Slices and reshaped tensors are StoredTensors, too; the result of any arithmetic is an f32 array.
    """

    def __init__(self, bits: Array, kind: Type) -> None:
        """`bits` are f32 if `kind` is f32, and u16 if it is bf16 or f16."""
        self.bits, self.kind = bits, kind

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401 - numpy's protocol
        return widen(self.bits, self.kind).astype(dtype or np.float32, copy=bool(copy))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401
        return getattr(ufunc, method)(*(np.asarray(x) if isinstance(x, StoredTensor) else x for x in inputs), **options)

    def __getitem__(self, index: Any) -> StoredTensor:  # noqa: ANN401 - numpy's protocol
        return StoredTensor(self.bits[index], self.kind)

    def __len__(self) -> int:
        return len(self.bits)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any other attribute of an array
        if name.startswith("__"):  # numpy looks for __array_interface__ and others before __array__
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.bits.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.bits.ndim

    def reshape(self, *shape: int) -> StoredTensor:
        """The tensor in another shape."""
        return StoredTensor(self.bits.reshape(*shape), self.kind)

    def constant(self) -> Node:
        """The tensor as an f32 node, whose constant keeps the stored bits.

        Whole tensors are not copied, so the checkpoint's file must stay mapped as long as the node is used.
        """
        if self.ndim < 2:
            return op.constant(np.asarray(self))
        stored = _constant(self.bits, self.kind, self.shape)
        return op.convert(stored, Type.f32) if self.kind in _NARROW else stored

    def lookup(self, ids: Node) -> Node:
        """f32[*ids.shape, H]: rows of a table [V, H], converted after they are gathered.

        The CPU plugin would widen a 16-bit table in memory before it gathers rows; it does not widen bytes. So rows are
        gathered as bytes, and each pair of bytes is then an index into a table of all 65,536 values.
        """
        if self.kind not in _NARROW or len(self) < _MIN_NARROW_ROWS:
            return op.gather(_constant(np.asarray(self), Type.f32, self.shape), ids, _axis(0))
        table = _constant(self.bits, Type.u8, (*self.shape, 2))
        low_and_high = op.transpose(op.gather(table, ids, _axis(0)), op.constant(np.array([3, 0, 1, 2], np.int64)))
        low, high = (op.convert(half, Type.i32) for half in op.split(low_and_high, _axis(0), 2).outputs())
        index = op.squeeze(op.add(low, op.multiply(high, op.constant(np.int32(256)))), _axis(0))
        values = widen(np.arange(1 << 16, dtype=np.uint16), self.kind)
        return op.gather(op.constant(values), index, _axis(0))


def stored_tensor(tensors: Tensors, name: str) -> StoredTensor | npt.NDArray[np.float32]:
    """A tensor of a checkpoint in its stored dtype; f64 and vectors become f32. Raises CheckpointError."""
    kind, raw = _TYPES.get(tensors.dtype(name)), tensors.raw(name)
    if kind is None or raw.ndim < 2:
        return tensors.f32(name)
    return StoredTensor(raw.view(np.uint16) if kind == Type.f16 else raw, kind)


def widen(bits: Array, kind: Type) -> npt.NDArray[np.float32]:
    """The f32 values of a StoredTensor's bits. If they are f32, returns the same array."""
    if kind == Type.bf16:
        return from_bf16(bits)
    return bits.view(np.float16).astype(np.float32) if kind == Type.f16 else bits


def is_weight(node: Node) -> bool:
    """Whether a node is a constant, or the Convert of a 16-bit one."""
    inputs = [value.get_node() for value in node.input_values()] if node.get_type_name() == "Convert" else [node]
    return all(each.get_type_name() == "Constant" for each in inputs)


def values_of(node: Node) -> npt.NDArray[np.float32] | None:
    """The f32 values of a weight; None for any other node."""
    return np.asarray(stored_values(node)) if is_weight(node) else None


def stored_values(node: Node) -> StoredTensor:
    """The values of a weight, without a copy."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    kind = node.get_element_type()
    return StoredTensor(node.data.view(np.uint16) if kind in _NARROW else node.data, kind)


def lookups(graph: Model, ids_name: str) -> Iterator[tuple[Node, Node, StoredTensor]]:
    """(node of the rows, node of the ids, table [V, H]) of each large table that the input `ids_name` looks up."""
    for node in [node for node in graph.get_ops() if node.get_type_name() == "Gather"]:
        table, ids = (node.input_value(index).get_node() for index in (0, 1))
        found = None
        if table.get_type_name() == "Constant" and list(table.shape) == [1 << 16]:  # see StoredTensor.lookup
            kind = Type.bf16 if table.data[_ONE_IN_BF16] == 1 else Type.f16
            while ids.get_type_name() != "Gather":
                ids = ids.input_value(0).get_node()
            table, ids = (ids.input_value(index).get_node() for index in (0, 1))
            found = StoredTensor(table.data.view(np.uint16)[..., 0], kind)
        elif is_weight(table) and len(table.shape) == 2 and table.shape[0] >= _MIN_NARROW_ROWS:
            found = stored_values(table)
        if found is not None and ids.get_friendly_name() == ids_name:
            yield node, ids, found


def keep_weights_narrow(graph: Model, precision: str) -> None:
    """Mark the Converts of 16-bit constants, so that the CPU plugin makes no f32 copy of the weights.

    In f32, small models are widened as a whole instead: the faster one of the two f32 kernels takes no 16-bit weights.
    """
    nodes = [node for node in graph.get_ops() if node.get_type_name() == "Convert"]
    narrow = [node for node in nodes if node.get_input_element_type(0) in _NARROW and is_weight(node)]
    num_bytes = sum(node.input_value(0).get_node().get_byte_size() for node in narrow)
    if precision != "f32" or num_bytes > _MAX_WIDENED_BYTES:
        for node in narrow:
            node.get_rt_info()[_DECOMPRESSION] = ""


def drop_mapped_pages(path: Path) -> None:
    """Free this process's memory for a mapped file, or for all mapped weights in a folder and the folders in it.

    If a page is used again, the system maps it again.
    """
    files = [file for file in path.rglob("*") if file.suffix in _MAPPED_FILES] if path.is_dir() else [path]
    names = {name_of(file) for file in files}
    with suppress(OSError):  # another system than Linux
        for mapped in ranges():
            if mapped.name in names and b"w" not in mapped.permissions:
                size = ctypes.c_size_t(mapped.end - mapped.start)
                ctypes.CDLL(None).madvise(ctypes.c_void_p(mapped.start), size, mmap.MADV_DONTNEED)


def save(model: Model, path: Path) -> None:
    """Write a graph and its weights. Raises OSError for errors of the file system, such as a full disk."""
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as fault:
        if "iostream error" not in str(fault):
            raise
        # OpenVINO's error does not name the reason. A request for the same space raises the file system's own error.
        constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 + sum(node.get_byte_size() for node in constants))
        raise OSError(errno.EIO, "the model could not be written", str(path)) from fault


def _constant(bits: Array, kind: Type, shape: tuple[int, ...]) -> Node:
    """A constant of these bits. It shares the memory of a mapped file, which it does not keep mapped.

    Other bits are copied, and so are those of a mapped file that are not contiguous.
    """
    whole = np.ascontiguousarray(bits)
    tensor = openvino.Tensor(whole, openvino.Shape(shape), kind)
    return op.constant(tensor, shared_memory=_is_mapped(whole))


def _is_mapped(array: Array) -> bool:
    """Whether an array is a mapped file, or a view of one: also a view of a view."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, mmap.mmap)


def _axis(value: int) -> Node:
    return op.constant(np.int64(value))
