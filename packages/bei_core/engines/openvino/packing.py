"""Sequence packing: a batch becomes R rows of L tokens with little padding and few different shapes.

A packed row holds whole sequences one after the other; segment ids keep attention within each sequence. With sequences
of mixed lengths 3-6% of the tokens are padding. With one sequence in each row, a third to a half would be
(docs/decisions/004-packed-rows.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch

Ints: TypeAlias = npt.NDArray[np.int32]
_Placement: TypeAlias = tuple[list[int], list[int], int]  # row of each sequence, its offset there, number of rows

PREFERRED_ROW_LENGTH = 128  # longest row that is tried, unless a sequence is longer
_ROW_LENGTH_STEP = 16
_MIN_ROW_LENGTH = 64  # of several rows; a single row is as short as its tokens allow

# In rows of about this length, attention costs as much per token as all other work (measured on MiniLM).
_ATTENTION_COST_LENGTH = 768


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A batch as the graph takes it. "Flat" is the index into the R * L tokens of the rows laid end to end."""

    input_ids: Ints  # [R, L]
    position_ids: Ints  # [R, L], from 0 in each sequence
    segment_ids: Ints  # [R, L], the sequence's number in the batch; -1 for padding
    type_ids: Ints  # [R, L]
    starts: Ints  # [B or more], flat index of the first token of each sequence that pooling uses
    lengths: Ints  # [B or more], number of tokens that pooling uses
    token_indices: Ints  # [T], flat index of each token of the batch

    @property
    def padding_share(self) -> float:
        """Share (0 to 1) of the rows' tokens that are padding."""
        return 1.0 - len(self.token_indices) / self.input_ids.size

    def graph_inputs(self) -> list[Ints]:
        """The arrays in the order of the graph's inputs (`graph.INPUT_NAMES`)."""
        return [self.input_ids, self.position_ids, self.segment_ids, self.type_ids, self.starts, self.lengths]


def pack_rows(batch: Batch, *, pad_id: int = 0) -> PackedRows:
    """The batch in packed rows. `starts` and `lengths` may have dummy sequences at the end: see `_round_up_count`."""
    lengths = batch.lengths
    (rows, offsets, num_rows), row_length = _cheapest_layout(lengths.tolist(), batch.max_len, batch.num_tokens)
    starts = np.array(rows, np.int32) * row_length + np.array(offsets, np.int32)
    positions = np.arange(batch.num_tokens, dtype=np.int32) - np.repeat(batch.cu_seqlens[:-1], lengths)
    token_indices = np.repeat(starts, lengths) + positions

    def scatter(values: Ints, fill: int) -> Ints:
        flat = np.full(num_rows * row_length, fill, np.int32)
        flat[token_indices] = values
        return flat.reshape(num_rows, row_length)

    num_dummies = _round_up_count(len(batch)) - len(batch)
    return PackedRows(
        input_ids=scatter(batch.input_ids, pad_id),
        position_ids=scatter(positions, 0),
        segment_ids=scatter(np.repeat(np.arange(len(batch), dtype=np.int32), lengths), -1),
        type_ids=scatter(batch.type_ids, 0),
        starts=np.pad(starts + batch.skips, (0, num_dummies)),
        lengths=np.pad(lengths - batch.skips, (0, num_dummies), constant_values=1),
        token_indices=token_indices,
    )


def _round_up_count(num_sequences: int) -> int:
    """1, 2, 4 or a multiple of 8, because OpenVINO needs some milliseconds of set-up for each new value of B.

    A dummy sequence is the first token of the first row; its output row is dropped.
    """
    return next((few for few in (1, 2, 4) if num_sequences <= few), -(-num_sequences // 8) * 8)


def _cheapest_layout(lengths: list[int], longest: int, num_tokens: int) -> tuple[_Placement, int]:
    """(placement, row length) with the least work: longer rows have less padding, but cost more attention."""
    if num_tokens <= PREFERRED_ROW_LENGTH:
        row_length = _round_up_length(num_tokens)
        return _first_fit_decreasing(lengths, row_length), row_length
    shortest = max(_MIN_ROW_LENGTH, _round_up_length(longest))
    tried = range(shortest, max(PREFERRED_ROW_LENGTH, shortest) + 1, _ROW_LENGTH_STEP)
    layouts = [(_first_fit_decreasing(lengths, row_length), row_length) for row_length in tried]
    return min(layouts, key=lambda layout: layout[0][2] * layout[1] * (1 + layout[1] / _ATTENTION_COST_LENGTH))


def _round_up_length(num_tokens: int) -> int:
    return -(-num_tokens // _ROW_LENGTH_STEP) * _ROW_LENGTH_STEP


def _first_fit_decreasing(lengths: list[int], row_length: int) -> _Placement:
    """Place the longest sequence first, and each one in the first row that has enough space left.

    Needs at most 11/9 of the fewest possible rows, plus 6/9 (Dósa 2007).
    """
    filled: list[int] = []
    rows, offsets = [0] * len(lengths), [0] * len(lengths)
    for sequence in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[sequence]
        row = next((row for row, used in enumerate(filled) if used + length <= row_length), len(filled))
        if row == len(filled):
            filled.append(0)
        rows[sequence], offsets[sequence] = row, filled[row]
        filled[row] += length
    return rows, offsets, len(filled)
