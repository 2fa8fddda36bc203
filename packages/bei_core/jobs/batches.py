"""Plans the batches of a part: best-fit bin packing of all its texts keeps padding low."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar

from bei_core.engines.best_fit import best_fit, cost_of

T = TypeVar("T")

# Engines that pad have packed rows of at least 64 tokens (engines/openvino/packing.py). Attention costs less in short
# rows, but fewer texts fit together. With 80, less than 3% is padding for most parts of 512 texts and more. Where
# another length is less work by _MIN_GAIN, as for texts that are all of 64 tokens, the part has rows of that length.
_ROW_TOKENS = 80
_OTHER_ROW_TOKENS = (64, 96, 112, 128)
_MIN_GAIN = 0.02


class Planned(NamedTuple):
    """A batch of a part."""

    indices: list[int]  # of its texts
    row_length: int  # of the packed rows for which they were chosen, in tokens; 0: the engine chooses


def plan_batches(
    lengths: Sequence[int], budget: int, max_tokens: int = 1 << 31, max_items: int | None = None
) -> Iterator[Planned]:
    """Yields the batches of a part, as indices into `lengths` (tokens per text).

    A batch with several packed rows has at most `budget` tokens, padding included. A batch has at most `max_items`
    texts, and at most `max_tokens` unless its only text has more. The longest texts come first, so that memory does not
    grow later. The same lengths give the same batches, so that a part that is computed again has the same bits. Batches
    of the same kind of rows differ by at most one row, because the engine keeps memory for each new shape of a batch.
    One with more than `max_items` texts is divided into batches that differ by at most one text.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)  # equal ones keep their order
    budget = min(budget, max_tokens)
    row_tokens_of = {length: _row_tokens(length, max_tokens) for length in set(lengths)}
    for row_tokens, group in groupby(order, key=lambda index: row_tokens_of[lengths[index]]):
        if row_tokens == _ROW_TOKENS:
            row_tokens, rows = _cheapest_rows(list(group), lengths, budget)
            row_length = row_tokens
        else:
            row_length, rows = 0, best_fit(group, lengths, row_tokens)
        num_batches = -(-len(rows) // max(1, budget // row_tokens))
        for part in _even_parts(rows, num_batches):
            batch = [index for row in part for index in row]
            for indices in _even_parts(batch, -(-len(batch) // (max_items or len(batch)))):
                yield Planned(indices, row_length)


def _cheapest_rows(indices: Sequence[int], lengths: Sequence[int], budget: int) -> tuple[int, list[list[int]]]:
    """Returns the length of the rows for texts of at most _ROW_TOKENS tokens, and the indices in each row."""
    longest, num_tokens = lengths[indices[0]], sum(lengths[index] for index in indices)
    chosen, rows = _ROW_TOKENS, best_fit(indices, lengths, _ROW_TOKENS)
    cost = cost_of(len(rows), chosen) * (1 - _MIN_GAIN)
    for row_tokens in _OTHER_ROW_TOKENS:
        # without padding, the work is the least that such rows can be
        if longest <= row_tokens <= budget and cost_of(num_tokens / row_tokens, row_tokens) < cost:
            others = best_fit(indices, lengths, row_tokens)
            if cost_of(len(others), row_tokens) < cost:
                chosen, rows, cost = row_tokens, others, cost_of(len(others), row_tokens)
    return chosen, rows


def _even_parts(items: list[T], num_parts: int) -> Iterator[list[T]]:
    """Yields the items in parts whose sizes differ by at most one."""
    ends = [len(items) * number // num_parts for number in range(num_parts + 1)]
    return (items[start:end] for start, end in pairwise(ends))


def _row_tokens(length: int, max_tokens: int) -> int:
    """Returns the number of tokens of the packed row for a text of `length` tokens: 80, 128, 256, 512, ..."""
    row_tokens = _ROW_TOKENS if length <= _ROW_TOKENS else 1 << (length - 1).bit_length()
    return max(length, min(row_tokens, max_tokens))
