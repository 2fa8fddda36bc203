"""Finds a checkpoint's tensors by the names of its architecture, under any known prefix or old spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bei_core.checkpoint import Tensors
from bei_core.engines.openvino.stored import stored_tensor
from bei_core.errors import CheckpointError
from bei_core.models.head_tensors import StoredAt
from bei_core.models.heads import first_of

# Names of LayerNorm's tensors in checkpoints converted from TensorFlow.
_OLD_NAMES = ((".weight", ".gamma"), (".bias", ".beta"))


class Weights:
    """A checkpoint's tensors under one prefix. Code that computes with them sees f32 (see `StoredTensor`)."""

    def __init__(self, tensors: Tensors, *, anchor: str, prefixes: Sequence[str]) -> None:
        """Use the first of `prefixes` under which the tensor `anchor` exists. Raises CheckpointError if none fits."""
        self._tensors = tensors
        self._names = frozenset(tensors.names())
        self._prefix = first_of(self._names, [prefix + anchor for prefix in prefixes]).removesuffix(anchor)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def get(self, name: str, *shape: int | None) -> npt.NDArray[np.float32]:
        """The tensor, f32[shape]; None means any size. Raises CheckpointError if it is missing or of another shape."""
        found = self._find(name)
        if found is None:
            raise CheckpointError(f"the checkpoint has no tensor {self._prefix}{name}")
        stored = found.tensors.raw(found.name).shape
        if len(shape) != len(stored) or any(n is not None and n != m for n, m in zip(shape, stored, strict=True)):
            expected = tuple("any" if size is None else size for size in shape)
            raise CheckpointError(f"tensor {found.name} has shape {stored}; config.json implies {expected}")
        return cast("npt.NDArray[np.float32]", stored_tensor(*found))

    def ints(self, name: str) -> npt.NDArray[np.integer[Any]]:
        """A tensor of integers. Raises CheckpointError if it is missing or not of integers."""
        found = self._tensors.raw(self._prefix + name)
        if found.dtype.kind not in "iu":
            raise CheckpointError(f"tensor {self._prefix}{name} is {found.dtype}, not integers")
        return found

    def without_prefix(self) -> Weights:
        """The same tensors, found by their full names."""
        whole = copy(self)
        whole._prefix = ""
        return whole

    def _find(self, name: str) -> StoredAt | None:
        spellings = [name] + [name.replace(new, old) for new, old in _OLD_NAMES if name.endswith(new)]
        names = (self._prefix + spelling for spelling in spellings)
        return next((StoredAt(self._tensors, found) for found in names if found in self._names), None)


class HeadWeights(Weights):
    """The tensors that `find_head_tensors` has found, by its names."""

    def __init__(self, found: Mapping[str, StoredAt]) -> None:
        self._found, self._prefix = found, ""

    def _find(self, name: str) -> StoredAt | None:
        return self._found.get(name)
