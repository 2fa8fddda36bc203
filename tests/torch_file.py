"""Files as torch.save writes them, without torch.

`tests/data/torch_save/pytorch_model.bin` is a file that torch itself wrote (`scripts/golden/torch_save.py`); a test
compares the pickles of both.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from bei_core.checkpoint.tensors import DTYPES, entries
from tests.golden.checkpoints import DATA
from tests.golden.weights import Shape, encode

REAL = DATA / "torch_save" / "pytorch_model.bin"
_CLASSES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}
_ALIGNMENT = 64


class Storage(NamedTuple):
    """The data of one or more tensors."""

    dtype: str  # by safetensors' name
    content: bytes


class View(NamedTuple):
    """A tensor in a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: Shape
    strides: Shape


def contiguous(dtype: str, shape: Shape, content: bytes) -> View:
    """A tensor with a storage of its own."""
    return View(Storage(dtype, content), 0, shape, tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))))


def transposed(dtype: str, shape: Shape, content: bytes) -> View:
    """A matrix that is stored by columns, as in models that were converted from TensorFlow."""
    by_columns = np.frombuffer(content, DTYPES[dtype]).reshape(shape).T.tobytes()
    return View(Storage(dtype, by_columns), 0, shape, (1, shape[0]))


def saved(tensors: Mapping[str, View], *, root: str = "archive") -> bytes:
    """The file of a module's state."""
    pickled, storages = _pickled(tensors)
    members = {"data.pkl": pickled, "byteorder": b"little"}
    members |= {f"data/{key}": storage.content for key, storage in enumerate(storages)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**members, "version": b"3\n"}.items():
            info = zipfile.ZipInfo(f"{root}/{name}")
            begin = file.tell() + 30 + len(info.filename) + 4  # 4: the head of the padding
            padding = -begin % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, content)
    return file.getvalue()


def pickle_weights(folder: Path, *, by_columns: bool = False) -> Path:
    """The folder, with each file of safetensors, and its index, replaced by what torch.save writes."""
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = {
            name: _view(entry.dtype, entry.shape, entry.file[entry.start :], by_columns)
            for name, entry in sorted(entries(path).items())
        }
        path.with_name(_pickled_name(path.name)).write_bytes(saved(tensors))
        path.unlink()
    for index in folder.rglob("model.safetensors.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"] = {name: _pickled_name(shard) for name, shard in content["weight_map"].items()}
        index.with_name("pytorch_model.bin.index.json").write_text(json.dumps(content))
        index.unlink()
    return folder


def _pickled_name(name: str) -> str:
    """model-00001-of-00002.safetensors -> pytorch_model-00001-of-00002.bin."""
    return f"pytorch_{name}".replace(".safetensors", ".bin")


def _view(dtype: str, shape: Shape, rest: bytes, by_columns: bool) -> View:
    content = rest[: int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize]
    return (transposed if by_columns and len(shape) == 2 else contiguous)(dtype, shape, content)


class _Tensor:
    """What torch's pickle of a tensor calls."""

    def __init__(self, view: View, rebuild: object) -> None:
        self.view, self.rebuild = view, rebuild

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        storage, offset, shape, strides = self.view
        # Pickle writes an object once, so the tuples are new objects, as those of torch.
        return self.rebuild, (_Stored(storage), offset, (*iter(shape),), (*iter(strides),), False, OrderedDict())


class _Stored(NamedTuple):
    storage: Storage


def _pickled(tensors: Mapping[str, View]) -> tuple[bytes, list[Storage]]:
    """data.pkl, and the storages in the order of their keys."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")
    for name in _CLASSES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def rebuild() -> None:
        """Stands for torch's function."""

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    setattr(utils, rebuild.__qualname__, rebuild)
    storages: list[Storage] = []
    keys: dict[int, str] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if not isinstance(value, _Stored):
                return None
            kind, content = value.storage
            if id(value.storage) not in keys:
                keys[id(value.storage)] = str(len(storages))
                storages.append(value.storage)
            count = len(content) // np.dtype(DTYPES[kind]).itemsize
            return "storage", getattr(torch, _CLASSES[kind]), keys[id(value.storage)], "cpu", count

    objects = {id(view): _Tensor(view, rebuild) for view in tensors.values()}
    state = OrderedDict((name, objects[id(view)]) for name, view in tensors.items())
    vars(state)["_metadata"] = OrderedDict({"": {"version": 1}})
    file = io.BytesIO()
    with patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        Pickler(file, protocol=2).dump(state)
    return file.getvalue(), storages


def dense(value: float) -> bytes:
    """The pickled weights of a Dense module."""
    return saved({"linear.weight": contiguous("F32", (1,), encode(np.array([value]), "F32"))})


# A model of which only pickled weights are published.
PICKLED: dict[str, object] = {
    "config.json": {"architectures": ["BertModel"]},
    "tokenizer.json": {},
    "modules.json": [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}],
    "1_Pooling/config.json": {"pooling_mode": "mean"},
    "2_Dense/config.json": {"bias": False},
    "pytorch_model.bin": saved({"dense.weight": transposed("F32", (2, 3), encode(np.arange(6), "F32"))}),
    "2_Dense/pytorch_model.bin": dense(7),
}
