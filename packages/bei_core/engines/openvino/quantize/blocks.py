"""Blocks of rows of a weight, on all processors: only the blocks in work are in memory as f32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bei_core.engines.openvino.engine import usable_cpus

T = TypeVar("T")
U = TypeVar("U")

# Weights of a block; limits the memory of intermediate results.
_BLOCK = 1 << 21


def in_blocks(work: Callable[[slice], T], shape: Sequence[int]) -> list[T]:
    """The results of `work` for the blocks of rows of a weight of this shape, in order."""
    size = max(1, _BLOCK // shape[1])
    return in_parallel(work, [slice(start, start + size) for start in range(0, shape[0], size)])


def in_parallel(work: Callable[[U], T], items: Iterable[U]) -> list[T]:
    """The result of `work` for each item, in order. `work` should release the GIL, as numpy does."""
    with ThreadPoolExecutor(usable_cpus()) as pool:
        return list(pool.map(work, items))
