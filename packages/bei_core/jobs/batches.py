"""Plans the batches of a part: best-fit bin packing of all its texts keeps padding low."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import TypeVar

from bei_core.engines.best_fit import best_fit

T = TypeVar("T")

# Engines that pad have packed rows of at least 64 tokens (engines/openvino/packing.py). Attention costs less in short
# rows, but fewer texts fit together. With 80, less than 3% is padding for parts of 1,000 texts and more.
ROW_TOKENS = 80


def plan_batches(
    lengths: Sequence[int], budget: int, max_tokens: int = 1 << 31, max_items: int | None = None
) -> Iterator[list[int]]:
    """Yields the batches of a part, each a list of indices into `lengths` (tokens per text).

    A batch with several packed rows has at most `budget` tokens, padding included. A batch has at most `max_items`
    texts, and at most `max_tokens` unless its only text has more. The longest texts come first, so that memory does not
    grow later. The same lengths give the same batches, so that a part that is computed again has the same bits. Batches
    of the same kind of rows differ by at most one row, because the engine keeps memory for each new shape of a batch.
    One with more than `max_items` texts is divided into batches that differ by at most one text.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)  # equal ones keep their order
    budget = min(budget, max_tokens)
    row_tokens_of = {length: _row_tokens(length, max_tokens) for length in set(lengths)}
    for row_tokens, indices in groupby(order, key=lambda index: row_tokens_of[lengths[index]]):
        rows = best_fit(indices, lengths, row_tokens)
        num_batches = -(-len(rows) // max(1, budget // row_tokens))
        for part in _even_parts(rows, num_batches):
            batch = [index for row in part for index in row]
            yield from _even_parts(batch, -(-len(batch) // (max_items or len(batch))))


def _even_parts(items: list[T], num_parts: int) -> Iterator[list[T]]:
    """Yields the items in parts whose sizes differ by at most one."""
    ends = [len(items) * number // num_parts for number in range(num_parts + 1)]
    return (items[start:end] for start, end in pairwise(ends))


def _row_tokens(length: int, max_tokens: int) -> int:
    """Returns the number of tokens of the packed row for a text of `length` tokens: 80, 128, 256, 512, ..."""
    row_tokens = ROW_TOKENS if length <= ROW_TOKENS else 1 << (length - 1).bit_length()
    return max(length, min(row_tokens, max_tokens))
