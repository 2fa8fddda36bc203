"""Finds first tokens that several sequences of a batch share, so that an engine computes them once.

It is for causal models only: there, a token's vector depends on the tokens before it and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch

Ids = npt.NDArray[np.int32]

# Shorter prefixes are not shared: most texts of a model begin with the same special tokens.
MIN_LENGTH = 16


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The first `length` tokens, which are the same in all of these sequences of a batch."""

    length: int
    sequences: list[int]  # at least two

    @property
    def num_saved(self) -> int:
        """Number of tokens that need not be computed."""
        return self.length * (len(self.sequences) - 1)


@dataclass(slots=True)
class _Run:
    """Sequences from `start` in sorted order, with `length` first tokens in common; `found` are prefixes in it."""

    length: int
    start: int
    found: list[SharedPrefix] = field(default_factory=list)


def shared_prefixes(batch: Batch, *, pad_id: int) -> list[SharedPrefix]:
    """Prefixes that save many tokens, at most one for each sequence: at least as many as the best prefix alone.

    A prefix is never so long that only padding tokens of a sequence would be left, because heads that read the last
    token that is not padding look for it after the prefix.
    """
    texts = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
    order = sorted(range(len(texts)), key=[ids.astype(">i4").tobytes() for ids in texts].__getitem__)
    limits = [_shareable(ids, pad_id) for ids in texts]
    in_common = [min(num_equal(texts[one], texts[other]), limits[one], limits[other]) for one, other in pairwise(order)]
    return _best(order, [length if length >= MIN_LENGTH else 0 for length in in_common])


class BatchCost(NamedTuple):
    """The number of tokens that a batch costs an engine that shares prefixes, which grows item by item.

    Adjacent sequences with the same first tokens are a run, in which these count once.
    """

    num_tokens: int = 0
    first: Ids | None = None  # the ids of the first item of the last run
    length: int = 0  # number of first tokens that the items of the run have in common
    num_items: int = 0  # in the run

    def plus(self, ids: Ids) -> BatchCost:
        """The cost with one more item, which costs at least 1 token."""
        length = 0 if self.first is None else min(self.length, num_equal(self.first, ids))
        if length < MIN_LENGTH:
            return BatchCost(self.num_tokens + len(ids), ids, len(ids), 1)
        added = len(ids) + (self.num_items - 1) * self.length - self.num_items * length
        return BatchCost(self.num_tokens + max(1, added), self.first, length, self.num_items + 1)


def num_equal(one: Ids, other: Ids) -> int:
    """Number of first tokens that two sequences have in common."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter


def _shareable(ids: Ids, pad_id: int) -> int:
    """Number of first tokens that may be shared: all, or those before the last one that is not padding."""
    if ids[-1] != pad_id:
        return len(ids)
    real = np.flatnonzero(ids != pad_id)
    return int(real[-1]) if len(real) else 0


def _best(order: Sequence[int], in_common: Sequence[int]) -> list[SharedPrefix]:
    """Prefixes that save many tokens; in_common[i] is the length that order[i] and order[i + 1] have in common.

    Visits the intervals of the LCP array bottom-up (Abouelhoda, Kurtz and Ohlebusch 2004), and takes an interval's own
    prefix if that saves more than those found inside it alone.
    """
    stack = [_Run(0, 0)]
    for stop, length in enumerate([*in_common, 0], 1):
        start, found = stop - 1, list[SharedPrefix]()
        while stack[-1].length > length:
            run = stack.pop()
            found = max(run.found, _with_own(run, order[run.start : stop]), key=_num_saved)
            start = run.start
            if stack[-1].length >= length:
                stack[-1].found += found
                found = []
        if length > stack[-1].length:
            stack.append(_Run(length, start, found))
    return stack[0].found


def _with_own(run: _Run, sequences: Sequence[int]) -> list[SharedPrefix]:
    """The run's own prefix for its sequences, except for those with a longer prefix that saves more."""
    longer = [each for each in run.found if each.num_saved > run.length * len(each.sequences)]
    taken = {sequence for each in longer for sequence in each.sequences}
    return [*longer, SharedPrefix(run.length, [sequence for sequence in sequences if sequence not in taken])]


def _num_saved(prefixes: Sequence[SharedPrefix]) -> int:
    return sum(each.num_saved for each in prefixes)
