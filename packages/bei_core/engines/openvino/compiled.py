"""The compiled graphs of a model, and the one inference request that runs them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import openvino

from bei_core.engines.batch import Batch
from bei_core.engines.openvino.graph import ROWS, TOKENS
from bei_core.engines.openvino.huge_pages import move_later
from bei_core.engines.openvino.lone import CHOSEN, LONE, LoneInputs
from bei_core.engines.openvino.models.blocks import KEY_NAMES
from bei_core.engines.openvino.packing import Ints, pack_rows
from bei_core.engines.prefixes import shared_prefixes

# How many kernels of each kind stay in memory after they ran, the last used ones (docs/decisions/004-packed-rows.md).
NUM_CACHED_KERNELS = 64

# Rows that are wider are as wide as a vocabulary (SPLADE).
_WIDE = 8192

# After so many tokens of a model, and at each tenfold number, the process's memory is moved to huge pages. The warm-up
# of a server has up to 3,200 tokens.
_TOKENS_IN_USE = 4_000

Array: TypeAlias = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a batch. The arrays are copies, because the next batch overwrites the tensors."""

    rows: Array  # f32[B, D]; D is 0 if the model has no such output
    tokens: Array  # f32[T, E] if TOKENS was wanted, else empty
    padding_share: float  # share (0 to 1) of the batch's tokens and the padding that is padding
    num_shared: int  # tokens of the batch that were not computed, because a prefix was computed once


class Graphs:
    """A compiled model: the graph for any batch, and one graph of fixed shape for each of `lengths`."""

    def __init__(self, compiled: openvino.CompiledModel, pad_id: int, lengths: Sequence[int] = ()) -> None:
        self._request = compiled.create_infer_request()
        self._pad_id = pad_id
        self._num_tokens, self._next_move = 0, _TOKENS_IN_USE  # tokens of all batches
        self._inputs: list[Ints] = []  # of the last batch; they stay alive because the request has their addresses
        self._input_names = [name for port in compiled.inputs if (name := port.any_name) not in {LONE, CHOSEN}]
        self.shares_prefixes = KEY_NAMES[0] in self._input_names
        widths = {port.any_name: int(port.partial_shape[1].get_length()) for port in compiled.outputs}
        self._names = widths.keys()
        self.row_width, self.token_width = widths.get(ROWS, 0), widths.get(TOKENS, 0)
        self.is_wide = self.row_width > _WIDE
        self._lone = LoneInputs(lengths, pad_id) if lengths else None
        if self._lone is not None:
            for name, tensor in self._lone.tensors.items():
                self._request.set_tensor(name, tensor)

    def infer(self, batch: Batch, wanted: str) -> Outputs:
        """Runs a batch and returns its rows (`wanted` is ROWS), or its rows and token rows (TOKENS)."""
        self._num_tokens += batch.num_tokens
        if self._num_tokens >= self._next_move:
            self._next_move *= 10
            move_later()
        has_graph = wanted == ROWS or ROWS not in self._names
        length = self._lone.choose(batch if has_graph else None) if self._lone is not None else 0
        if length:
            self._request.infer({}, share_inputs=True)
            return self._outputs(batch, wanted, slice(batch.num_tokens), length)
        prefixes = shared_prefixes(batch, pad_id=self._pad_id) if self.shares_prefixes else []
        packed = pack_rows(
            batch, pad_id=self._pad_id, prefixes=prefixes, with_tokens=wanted == TOKENS, is_wide=self.is_wide
        )
        self._inputs = packed.graph_inputs(self._input_names)
        self._request.infer(self._inputs, share_inputs=True)
        num_shared = batch.num_tokens - packed.num_tokens
        return self._outputs(batch, wanted, packed.token_indices, packed.input_ids.size, num_shared)

    def _outputs(
        self, batch: Batch, wanted: str, indices: Ints | slice, num_computed: int, num_shared: int = 0
    ) -> Outputs:
        """The outputs of a batch; `num_computed` is the number of tokens with padding that were computed."""
        rows = self._read(ROWS, slice(len(batch))) if ROWS in self._names else np.empty((len(batch), 0), np.float32)
        tokens = self._read(TOKENS, indices) if wanted == TOKENS else rows[:0]
        return Outputs(rows, tokens, 1 - batch.num_tokens / (num_computed + num_shared), num_shared)

    def _read(self, name: str, indices: Ints | slice) -> Array:
        return np.array(self._request.get_tensor(name).data[indices])


@cache
def core() -> openvino.Core:
    """OpenVINO's plugins, for the whole process.

    The CPU plugin gives the thread that loads it a stack for signal handlers, and frees that stack with the last model.
    If another thread freed the model, as when the graphs for lone texts replace the first ones, then the next signal,
    such as SIGTERM, would end the process with a segmentation fault. So the plugin is never unloaded.

    The plugin's library for kernels, oneDNN, reads the size of its own cache from the environment. The variable is set
    for the whole process and those that it starts, so other users of oneDNN in it have the same limit, too.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(NUM_CACHED_KERNELS))
    return openvino.Core()


def at_low_priority(work: Callable[[], T]) -> T:
    """Runs `work` on a thread of the lowest priority (on Linux only) and returns its result.

    `work` should release the GIL for most of its time, because the other threads wait for the GIL. It runs under
    SCHED_IDLE: for Linux a processor that runs nothing else is free, so a thread that wakes up gets it at once. With
    nice 19, p99 of the first minute of a server was 1.5 times as long (docs/decisions/028).
    """

    def lower() -> None:
        if sys.platform != "linux":  # elsewhere the priority would be that of the process
            return
        thread = threading.get_native_id()
        try:
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        except OSError:  # in some sandboxes
            os.setpriority(os.PRIO_PROCESS, thread, 19)

    with ThreadPoolExecutor(1, initializer=lower) as pool:
        return pool.submit(work).result()
