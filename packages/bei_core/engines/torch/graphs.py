"""CUDA graphs for small batches. Without them, launching the many short kernels takes longer than computing.

A graph has a fixed shape, so a batch is padded to the next larger shape. The padding tokens form one more sequence
after the others. So every token belongs to a sequence, and the kernels write all rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bei_core.engines.batch import Batch
from bei_core.engines.torch.batches import CAPTURING, LONGEST, TEXTS, TOKENS
from bei_core.engines.torch.models.model import Model
from bei_core.engines.torch.models.sequences import Sequences, upload

log = logging.getLogger(__name__)


class Shape(NamedTuple):
    """The shape of a CUDA graph. A graph has `texts` + 1 sequences, because the last one is the padding."""

    texts: int
    tokens: int
    longest: int

    @classmethod
    def of(cls, batch: Batch, max_seq_len: int) -> Shape | None:
        """Returns the smallest shape that fits a batch.

        None if the batch is too large, or if it would need more than `max_seq_len` padding tokens.
        """
        texts, tokens = _at_least(len(batch), TEXTS), _at_least(batch.num_tokens, TOKENS)
        if texts is None or tokens is None or tokens - batch.num_tokens > max_seq_len:
            return None
        longest = _at_least(max(batch.max_len, tokens - batch.num_tokens), LONGEST)
        return None if longest is None else cls(texts, tokens, longest)

    def pad(self, batch: Batch) -> Batch:
        """Returns the batch with empty sequences up to `texts`, then one sequence of all padding tokens (id 0)."""
        spare, empty = self.tokens - batch.num_tokens, self.texts - len(batch)
        ends = np.array([batch.num_tokens] * empty + [self.tokens], np.int32)
        return Batch(
            input_ids=np.pad(batch.input_ids, (0, spare)),
            type_ids=np.pad(batch.type_ids, (0, spare)),
            cu_seqlens=np.concatenate([batch.cu_seqlens, ends]),
            max_len=self.longest,
            skips=np.pad(batch.skips, (0, empty + 1)),
        )


class Graphs:
    """Runs `Model.rows` with CUDA graphs, one for each shape. All graphs share one pool of memory.

    A graph is captured when a batch first needs its shape: in a request, unless the short warm-up of the server had it.
    """

    def __init__(self, model: Model, max_seq_len: int) -> None:
        self._model, self._max_seq_len = model, max_seq_len
        self._recorded: dict[Shape, tuple[Tensor, Callable[[], None], Tensor]] = {}
        self._shared: Any = None  # by all graphs; see `record`
        self._captures = True  # whether graphs are captured for new shapes

    def run(self, batch: Batch) -> Tensor | None:
        """Returns the rows f32[B, D] of a batch, which the next call overwrites; None if no graph can run it.

        After an error in a capture no more graphs are captured. If it is too little memory, the batch may still fit
        without a graph, and the graphs that exist are used; after any other error none is.
        """
        shape = Shape.of(batch, self._max_seq_len)
        if shape is None or not (self._captures or shape in self._recorded):
            return None
        flat = upload(shape.pad(batch), self._model.device)
        try:
            found = self._recorded.get(shape) or self._record(shape, flat)
        except RuntimeError as error:
            self._stop(error)
            return None
        static, replay, rows = found
        static.copy_(flat)
        replay()
        return rows[: len(batch)]

    def _stop(self, error: RuntimeError) -> None:
        self._captures = False
        # An error within a capture may be followed by one of its end.
        if any(isinstance(each, torch.OutOfMemoryError) for each in (error, error.__context__)):
            log.warning(
                "no more CUDA graphs are captured (slower for short texts): the GPU's memory is full: %s", error
            )
            return
        self._recorded.clear()
        self._shared = None
        log.warning("CUDA graphs are not used, because one cannot be captured (slower for short texts): %s", error)

    def _record(self, shape: Shape, flat: Tensor) -> tuple[Tensor, Callable[[], None], Tensor]:
        static = flat.clone()

        def compute() -> Tensor:
            lengths = static[4 * shape.tokens :]
            return self._model.rows(Sequences.of(static, shape.tokens, lengths, shape.longest))

        replay, rows, self._shared = record(compute, self._shared)
        self._recorded[shape] = static, replay, rows
        return self._recorded[shape]


def record(compute: Callable[[], Tensor], shared: Any) -> tuple[Callable[[], None], Tensor, Any]:
    """Captures `compute` in a CUDA graph; returns (function that runs the graph, its result, what graphs share).

    Each run of the graph overwrites the result. Graphs share a pool of memory, and therefore also the stream on which
    they are captured. It belongs to the current GPU; torch's own stream for graphs is one for all GPUs.
    """
    pool, stream = shared or (None, torch.cuda.Stream())
    current = torch.cuda.current_stream()
    # `torch.cuda.graph` leaves its stream the current one if a capture fails. The outer block restores the stream that
    # all callers of the engine share, which orders their batches.
    with CAPTURING, torch.cuda.stream(stream):
        stream.wait_stream(current)
        compute()  # a first run, in which libraries initialise, because a graph cannot contain it
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            rows = compute()
    return graph.replay, rows, (graph.pool(), stream)


def _at_least(value: int, sizes: tuple[int, ...]) -> int | None:
    return next((size for size in sizes if size >= value), None)
