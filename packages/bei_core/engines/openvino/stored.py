"""Tensors of a checkpoint in the bits in which it stores them, and their constants in a graph.

bfloat16 and float16 stay 16 bits wide in the engine folder and in memory. The nodes here give f32 to whatever comes
after them: the weights of linear layers by a Convert that the CPU plugin fuses into the layer, embeddings by a
conversion of the gathered rows (docs/decisions/025-weights.md).
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from numpy.lib.mixins import NDArrayOperatorsMixin
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.checkpoint import Tensors

Array = npt.NDArray[Any]

_TYPES = {"BF16": Type.bf16, "F16": Type.f16, "F32": Type.f32}
_NARROW = (Type.bf16, Type.f16)

# Shorter tables are widened to f32 when the engine is built: they are small, and a lookup of f32 is faster.
_MIN_NARROW_ROWS = 16384

# 16-bit weights of linear layers that an f32 engine widens when it is loaded, in bytes.
_MAX_WIDENED_BYTES = 256 << 20

# The key under which the CPU plugin finds that a Convert widens weights, which it then does not widen in advance.
_DECOMPRESSION = "decompression_0"


class StoredTensor(NDArrayOperatorsMixin):
    """A tensor of a checkpoint. For numpy it is an array of f32, which is computed when it is used.

    Slices and reshaped tensors are StoredTensors, too; the result of any arithmetic is an array of f32.
    """

    def __init__(self, bits: Array, kind: Type) -> None:
        """`bits` are f32 for f32, and u16 for bf16 and f16."""
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
        """The tensor as a node f32, stored in its own bits.

        Whole tensors are not copied: the checkpoint's file has to stay mapped as long as the node is used.
        """
        if self.ndim < 2:
            return op.constant(np.asarray(self))
        stored = _constant(self.bits, self.kind, self.shape)
        return op.convert(stored, Type.f32) if self.kind in _NARROW else stored

    def lookup(self, ids: Node) -> Node:
        """f32[*ids.shape, H]: rows of a table [V, H], converted after they are gathered.

        The CPU plugin would widen a 16-bit table in memory before it gathers rows, but leaves bytes alone. So the table
        is gathered as bytes, and each pair of bytes is an index into a table of all 65,536 values.
        """
        if self.kind not in _NARROW or len(self) < _MIN_NARROW_ROWS:
            return op.gather(op.constant(np.ascontiguousarray(self)), ids, _axis(0))
        table = _constant(self.bits, Type.u8, (*self.shape, 2))
        low_and_high = op.transpose(op.gather(table, ids, _axis(0)), op.constant(np.array([3, 0, 1, 2], np.int64)))
        low, high = (op.convert(half, Type.i32) for half in op.split(low_and_high, _axis(0), 2).outputs())
        index = op.squeeze(op.add(low, op.multiply(high, op.constant(np.int32(256)))), _axis(0))
        values = widen(np.arange(1 << 16, dtype=np.uint16), self.kind)
        return op.gather(op.constant(values), index, _axis(0))


def stored_tensor(tensors: Tensors, name: str) -> StoredTensor | npt.NDArray[np.float32]:
    """A tensor of a checkpoint; f32 if it is f64 or a vector. Raises CheckpointError as `Tensors.f32`."""
    kind, raw = _TYPES.get(tensors.dtype(name)), tensors.raw(name)
    if kind is None or raw.ndim < 2:
        return tensors.f32(name)
    return StoredTensor(raw.view(np.uint16) if kind == Type.f16 else raw, kind)


def widen(bits: Array, kind: Type) -> npt.NDArray[np.float32]:
    """The f32 values of the bits that a StoredTensor has; a view if they are f32."""
    if kind == Type.bf16:
        wide = bits.astype(np.uint32)
        wide <<= np.uint32(16)  # bfloat16 is the upper half of a float32
        return wide.view(np.float32)
    return bits.view(np.float16).astype(np.float32) if kind == Type.f16 else bits


def is_weight(node: Node) -> bool:
    """Whether a node is a constant, or the Convert of a 16-bit one."""
    inputs = [value.get_node() for value in node.input_values()] if node.get_type_name() == "Convert" else [node]
    return all(each.get_type_name() == "Constant" for each in inputs)


def values_of(node: Node) -> npt.NDArray[np.float32] | None:
    """The f32 values of a weight; None for any other node."""
    if not is_weight(node):
        return None
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    kind = node.get_element_type()
    return widen(node.data.view(np.uint16), kind) if kind in _NARROW else np.asarray(node.data)


def keep_weights_narrow(graph: Model, precision: str) -> None:
    """Marks the Converts of 16-bit constants, so that the only copy of the weights is the one packed for the kernels.

    In f32, small models are widened as a whole instead: the faster one of the two f32 kernels takes no 16-bit weights.
    """
    nodes = [node for node in graph.get_ops() if node.get_type_name() == "Convert"]
    narrow = [node for node in nodes if node.get_input_element_type(0) in _NARROW and is_weight(node)]
    num_bytes = sum(node.input_value(0).get_node().get_byte_size() for node in narrow)
    if precision != "f32" or num_bytes > _MAX_WIDENED_BYTES:
        for node in narrow:
            node.get_rt_info()[_DECOMPRESSION] = ""


def drop_mapped_pages(path: Path) -> None:
    """Takes the pages of a mapped file out of this process's memory; a page that is used again is mapped again."""
    try:
        lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:  # another system than Linux
        return
    for address, permissions, *_, name in (line for line in lines if len(line) == 6):
        if name == str(path.resolve()) and "w" not in permissions:
            start, end = (int(part, 16) for part in address.split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _constant(bits: Array, kind: Type, shape: tuple[int, ...]) -> Node:
    """A constant of these bits: the memory itself if it is of a mapped file, else a copy."""
    whole = np.ascontiguousarray(bits)
    tensor = openvino.Tensor(whole, openvino.Shape(shape), kind)
    return op.constant(tensor, shared_memory=isinstance(whole.base, mmap.mmap))


def _axis(value: int) -> Node:
    return op.constant(np.int64(value))
