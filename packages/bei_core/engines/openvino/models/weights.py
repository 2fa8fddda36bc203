"""Finds a checkpoint's tensors by the names of its architecture, under any known prefix or old spelling."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bei_core.checkpoint import Tensors
from bei_core.engines.openvino.stored import stored_tensor
from bei_core.errors import CheckpointError

# Names of LayerNorm's tensors in checkpoints converted from TensorFlow.
_OLD_NAMES = ((".weight", ".gamma"), (".bias", ".beta"))


class Weights:
    """A checkpoint's tensors under one prefix. Code that computes with them sees f32 (see `StoredTensor`)."""

    def __init__(self, tensors: Tensors, *, anchor: str, prefixes: Sequence[str]) -> None:
        """Use the first of `prefixes` under which the tensor `anchor` exists. Raises CheckpointError if none fits."""
        self._tensors = tensors
        self._names = frozenset(tensors.names())
        for prefix in prefixes:
            if prefix + anchor in self._names:
                self._prefix = prefix
                return
        tried = ", ".join(prefix + anchor for prefix in prefixes)
        raise CheckpointError(f"the checkpoint has none of these tensors: {tried}")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def get(self, name: str, *shape: int | None) -> npt.NDArray[np.float32]:
        """The tensor, f32[shape]; None means any size. Raises CheckpointError if it is missing or of another shape."""
        found = self._find(name)
        if found is None:
            raise CheckpointError(f"the checkpoint has no tensor {self._prefix}{name}")
        stored = self._tensors.raw(found).shape
        if len(shape) != len(stored) or any(n is not None and n != m for n, m in zip(shape, stored, strict=True)):
            expected = tuple("any" if size is None else size for size in shape)
            raise CheckpointError(f"tensor {found} has shape {stored}; config.json implies {expected}")
        return cast("npt.NDArray[np.float32]", stored_tensor(self._tensors, found))

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

    def _find(self, name: str) -> str | None:
        spellings = [name] + [name.replace(new, old) for new, old in _OLD_NAMES if name.endswith(new)]
        return next((self._prefix + spelling for spelling in spellings if self._prefix + spelling in self._names), None)
