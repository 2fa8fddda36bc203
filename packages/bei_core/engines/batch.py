"""The input of an engine: token sequences concatenated in flat arrays.

Letters for shapes, the same in every engine:
    B sequences of a batch, T tokens of all of them
    R packed rows, L length of a row (in `engines/openvino`; of one sequence elsewhere)
    H hidden size, V vocabulary size, N query heads, K key and value heads, S size of a head
    D width of a sequence's output row, E width of a token's output row, C labels of a classifier
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from bei_core.tasks import Tokens

_MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """`B` sequences of `T` tokens in total; sequence `i` is `input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]`."""

    input_ids: npt.NDArray[np.int32]  # [T]
    type_ids: npt.NDArray[np.int32]  # [T]
    cu_seqlens: npt.NDArray[np.int32]  # [B + 1], cumulative lengths from 0
    max_len: int  # tokens of the longest sequence
    skips: npt.NDArray[np.int32]  # [B], number of first tokens of each sequence that pooling leaves out
    row_length: int = 0  # of packed rows that the sequences were chosen to fill; 0 if they were not chosen so

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def num_tokens(self) -> int:
        """`T`."""
        return len(self.input_ids)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Number of tokens of each sequence, i32[B]."""
        return np.diff(self.cu_seqlens)

    @property
    def is_blank(self) -> bool:
        """Whether all token ids are 0, as in the batches that warm an engine up or probe it, and in hardly any text."""
        return not self.input_ids.any()

    @classmethod
    def blank(cls) -> Batch:
        """One sequence of one token with id 0, to try an engine with."""
        return cls.pack([Tokens(np.zeros(1, np.int32), np.zeros(1, np.int32))])

    @classmethod
    def pack(cls, items: Sequence[Tokens], row_length: int = 0) -> Batch:
        """The sequences of `items`, in order. Raises ValueError if there are none, or if one is empty."""
        lengths = [len(item.ids) for item in items]
        if not lengths or not min(lengths):
            raise ValueError("this is a bug: a batch holds at least one sequence, and none of them is empty")
        return cls(
            input_ids=np.concatenate([item.ids for item in items]),
            type_ids=np.concatenate([item.type_ids for item in items]),
            cu_seqlens=np.array([0, *accumulate(lengths)], np.int32),
            max_len=max(lengths),
            skips=np.array([item.skip for item in items], np.int32),
            row_length=row_length,
        )

    def part(self, start: int, stop: int) -> Batch:
        """Returns a batch of the sequences from `start` to `stop` (excluded), as views of this batch's token arrays."""
        first, last = self.cu_seqlens[start], self.cu_seqlens[stop]
        return Batch(
            input_ids=self.input_ids[first:last],
            type_ids=self.type_ids[first:last],
            cu_seqlens=self.cu_seqlens[start : stop + 1] - first,
            max_len=int(self.lengths[start:stop].max()),
            skips=self.skips[start:stop],
            row_length=self.row_length,
        )

    def even_parts(self, count: int) -> list[Batch]:
        """Returns at most `count` parts of the batch with about the same number of tokens, in order."""
        ends = np.searchsorted(self.cu_seqlens, np.arange(1, count) * self.num_tokens / count)
        edges = np.unique([0, *ends, len(self)]).tolist()
        return [self.part(start, stop) for start, stop in pairwise(edges)]

    def split(self, *, max_items: int, max_tokens: int) -> Iterator[Batch]:
        """Yields parts of the batch within both limits, in order; a text of more than `max_tokens` tokens is a part."""
        start = 0
        for stop in range(1, len(self) + 1):
            is_full = stop - start == max_items or stop == len(self)
            if is_full or self.cu_seqlens[stop + 1] - self.cu_seqlens[start] > max_tokens:
                yield self.part(start, stop)
                start = stop


def distinct(inputs: Sequence[Tokens]) -> tuple[list[Tokens], list[int]]:
    """Returns the inputs without repetitions, and for each of `inputs` its index in that list.

    Inputs are equal if an engine computes the same for them: ids, type ids and the number of skipped tokens are.
    """
    keys = [(_digest(item.ids.tobytes() + item.type_ids.tobytes()), item.skip) for item in inputs]
    found = dict(zip(keys, inputs, strict=True))
    places = {key: place for place, key in enumerate(found)}
    return list(found.values()), [places[key] for key in keys]


def _digest(content: bytes) -> bytes:
    """Returns what stands for long bytes: a job has thousands of long texts in memory at a time."""
    return content if len(content) <= _MAX_KEY_BYTES else blake2b(content).digest()
