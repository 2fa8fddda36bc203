"""Tensors of a checkpoint by the names their architecture gives them, whatever prefix or spelling the file uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bei_core.checkpoint import Tensors
from bei_core.errors import CheckpointError

# What LayerNorm's tensors were called in TensorFlow checkpoints, and in those converted from them.
_OLD_NAMES = ((".weight", ".gamma"), (".bias", ".beta"))


class Weights:
    """A checkpoint's tensors under `prefix`, as f32."""

    def __init__(self, tensors: Tensors, *, anchor: str, prefixes: Sequence[str]) -> None:
        """Finds the first of `prefixes` under which the tensor `anchor` exists. Raises CheckpointError for none."""
        self._tensors = tensors
        self._names = frozenset(tensors.names())
        for prefix in prefixes:
            if prefix + anchor in self._names:
                self._prefix = prefix
                return
        tried = ", ".join(prefix + anchor for prefix in prefixes)
        raise CheckpointError(f"no tensor of these names is in the checkpoint: {tried}")

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def get(self, name: str, *shape: int | None) -> npt.NDArray[np.float32]:
        """f32 tensor. Raises CheckpointError where it is missing or not of `shape` (None stands for any size)."""
        found = self._find(name)
        if found is None:
            raise CheckpointError(f"the checkpoint has no tensor {self._prefix}{name}")
        tensor = self._tensors.f32(found)
        if len(shape) != tensor.ndim or any(n is not None and n != m for n, m in zip(shape, tensor.shape, strict=True)):
            expected = tuple("any" if size is None else size for size in shape)
            raise CheckpointError(f"tensor {found} has shape {tensor.shape}; config.json implies {expected}")
        return tensor

    def _find(self, name: str) -> str | None:
        spellings = [name] + [name.replace(new, old) for new, old in _OLD_NAMES if name.endswith(new)]
        return next((self._prefix + spelling for spelling in spellings if self._prefix + spelling in self._names), None)
