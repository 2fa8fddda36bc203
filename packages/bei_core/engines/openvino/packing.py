"""Sequence packing: a batch becomes R rows of L tokens with little padding and few different shapes.

A packed row holds whole sequences one after the other; segment ids keep attention within each sequence. With sequences
of mixed lengths 3-6% of the tokens are padding. With one sequence in each row, a third to a half would be
(docs/decisions/004-packed-rows.md).

A prefix that sequences share is a segment of its own, which is in one row only. The rest of each of these sequences is
a segment, too, and may be in any row: each row has a list of the tokens of other rows that it attends to
(docs/decisions/032-shared-prefixes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch
from bei_core.engines.best_fit import best_fit, cost_of
from bei_core.engines.openvino.models.blocks import INPUT_NAMES
from bei_core.engines.prefixes import SharedPrefix

Ints = npt.NDArray[np.int32]

PREFERRED_ROW_LENGTH = 128  # longest row that is tried, unless a sequence is longer
_SHARING_ROW_LENGTH = 256  # the same if sequences share a prefix
_ROW_LENGTH_STEP = 16
_MIN_ROW_LENGTH = 64  # of several rows; a single row is as short as its tokens allow


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A batch as the graph takes it. "Flat" is the index into the R * L tokens of the rows laid end to end."""

    input_ids: Ints  # [R, L]
    position_ids: Ints  # [R, L], from 0 in each sequence
    segment_ids: Ints  # [R, L], the sequence's number in the batch; B + its number for a shared prefix; -1 for padding
    type_ids: Ints  # [R, L]
    starts: Ints  # [B or more], flat index of the first token of each sequence that pooling uses
    lengths: Ints  # [B or more], number of tokens that pooling uses; of a sequence with a prefix, only the rest
    prefix_ids: Ints  # [R, L], the segment id of the prefix of the token's sequence; without one, as `segment_ids`
    key_indices: Ints  # [R, L + O], flat index of the row's tokens, and of tokens of other rows that they attend to
    key_segment_ids: Ints  # [R, L + O], the segment ids of these tokens; -1 for padding
    token_indices: Ints  # [T], flat index of each token of the batch
    output_indices: Ints  # flat index of each token whose vector is an output: all [R * L] or none [0]
    num_tokens: int  # tokens in the rows without padding: a shared prefix counts once

    def graph_inputs(self, names: Sequence[str] = INPUT_NAMES) -> list[Ints]:
        """The arrays of a graph's inputs, by their names."""
        return [getattr(self, name) for name in names]


@dataclass(frozen=True, slots=True)
class _Segments:
    """The segments of a batch: what each sequence has after its prefix, if any (B), and the shared prefixes."""

    lengths: Ints  # [B + number of prefixes], in tokens; 0 if a sequence has nothing after its prefix
    prefixes: Ints  # [B], the segment of each sequence's prefix; its own segment if it has none
    shared: Ints  # [B], number of tokens in the prefix, or 0

    @classmethod
    def of(cls, batch: Batch, shared_prefixes: Sequence[SharedPrefix]) -> _Segments:
        """The segments of a batch with these prefixes."""
        prefixes, shared = np.arange(len(batch), dtype=np.int32), np.zeros(len(batch), np.int32)
        for segment, prefix in enumerate(shared_prefixes, len(batch)):
            prefixes[prefix.sequences], shared[prefix.sequences] = segment, prefix.length
        lengths = [*(batch.lengths - shared), *(prefix.length for prefix in shared_prefixes)]
        return cls(np.array(lengths, np.int32), prefixes, shared)

    def order(self) -> list[int]:
        """The segments with tokens, the longest first; those with the same prefix come one after the other."""
        if not self.shared.any():  # then all have tokens
            return np.argsort(-self.lengths, kind="stable").tolist()  # type: ignore[no-any-return]
        num_sequences = len(self.prefixes)
        groups = [*np.where(self.shared > 0, self.prefixes, 0).tolist(), *range(num_sequences, len(self.lengths))]
        lengths: list[int] = self.lengths.tolist()
        with_tokens = [segment for segment, length in enumerate(lengths) if length]
        return sorted(with_tokens, key=lambda segment: (groups[segment], -lengths[segment]))


@dataclass(frozen=True, slots=True)
class _Layout:
    """A place for each segment."""

    segments: _Segments
    row_length: int
    rows: list[list[int]]  # the segments of each row, in order
    outside: list[list[int]]  # the prefixes in other rows that each row attends to

    @property
    def num_outside(self) -> int:
        """Number of tokens of other rows for each row, rounded up to have few different shapes."""
        if not any(self.outside):
            return 0
        return _round_up_length(max(int(self.segments.lengths[prefixes].sum()) for prefixes in self.outside))

    @property
    def cost(self) -> float:
        """The work, as a number of tokens without attention."""
        return cost_of(len(self.rows), self.row_length, self.num_outside)

    def starts(self) -> Ints:
        """i32[number of segments]: the flat index of each segment's first token."""
        lengths: list[int] = self.segments.lengths.tolist()
        starts = [0] * len(lengths)
        for row, segments in enumerate(self.rows):
            start = row * self.row_length
            for segment in segments:
                starts[segment] = start
                start += lengths[segment]
        return np.array(starts, np.int32)

    def outside_tokens(self, starts: Ints) -> tuple[Ints, Ints]:
        """i32[R, O] twice: flat index and segment id of the tokens of other rows; 0 and -1 after the last one."""
        indices = np.zeros((len(self.rows), self.num_outside), np.int32)
        segment_ids = np.full_like(indices, -1)
        for row, prefixes in enumerate(self.outside):
            stop = 0
            for prefix in prefixes:
                start, stop = stop, stop + int(self.segments.lengths[prefix])
                indices[row, start:stop] = np.arange(starts[prefix], starts[prefix] + stop - start)
                segment_ids[row, start:stop] = prefix
        return indices, segment_ids


def pack_rows(
    batch: Batch,
    *,
    pad_id: int = 0,
    prefixes: Sequence[SharedPrefix] = (),
    with_tokens: bool = True,
    is_wide: bool = False,
) -> PackedRows:
    """The batch in packed rows, which share the prefixes if that is less work.

    `with_tokens` says whether the vectors of tokens are wanted, too, and not only those of sequences; `is_wide`, that
    the output of a sequence is as wide as a vocabulary.
    `starts` and `lengths` may have dummy sequences at the end: see `_round_up_count`.
    """
    tried = [_Segments.of(batch, each) for each in ([prefixes, ()] if prefixes else [()])]
    layouts = [_cheapest_layout(each, batch.row_length) for each in tried]
    layout = min(layouts, key=lambda layout: layout.cost)
    segments, starts, lengths = layout.segments, layout.starts(), batch.lengths

    positions = np.arange(batch.num_tokens, dtype=np.int32) - np.repeat(batch.cu_seqlens[:-1], lengths)
    prefix_ids, shared = np.repeat(segments.prefixes, lengths), np.repeat(segments.shared, lengths)
    own_ids = np.repeat(np.arange(len(batch), dtype=np.int32), lengths)
    segment_ids = np.where(positions < shared, prefix_ids, own_ids)
    token_indices = starts[segment_ids] + np.where(positions < shared, positions, positions - shared)

    def scatter(values: Ints, fill: int) -> Ints:
        flat = np.full(len(layout.rows) * layout.row_length, fill, np.int32)
        flat[token_indices] = values
        return flat.reshape(-1, layout.row_length)

    rows = scatter(segment_ids, -1)
    indices, outside_ids = layout.outside_tokens(starts)
    pooled = np.where(segments.lengths[: len(batch)] > 0, np.arange(len(batch)), segments.prefixes)
    before = np.where(pooled < len(batch), segments.shared, 0)  # tokens of the sequence before the pooled segment
    skips = np.maximum(batch.skips - before, 0)
    num_dummies = _round_up_count(len(batch), is_wide=is_wide) - len(batch)
    return PackedRows(
        input_ids=scatter(batch.input_ids, pad_id),
        position_ids=scatter(positions, 0),
        segment_ids=rows,
        type_ids=scatter(batch.type_ids, 0),
        starts=np.pad(starts[pooled] + skips, (0, num_dummies)),
        lengths=np.pad(segments.lengths[pooled] - skips, (0, num_dummies), constant_values=1),
        prefix_ids=scatter(prefix_ids, -1),
        key_indices=np.hstack([np.arange(rows.size, dtype=np.int32).reshape(rows.shape), indices]),
        key_segment_ids=np.hstack([rows, outside_ids]),
        token_indices=token_indices,
        output_indices=np.arange(rows.size if with_tokens else 0, dtype=np.int32),
        num_tokens=int(segments.lengths.sum()),
    )


def _round_up_count(num_sequences: int, *, is_wide: bool) -> int:
    """The next power of 4; of 2, if the output of a sequence costs much because it is wide.

    OpenVINO needs some milliseconds, and keeps 0.6 MB of memory, for each new B with the same R and L. A dummy sequence
    is the first token of the first row; its output row is dropped. It costs its pooling and, if pooling reads one
    token, that token's last layer.
    """
    bits = 1 if is_wide else 2
    return 1 << -(-(num_sequences - 1).bit_length() // bits) * bits


def _cheapest_layout(segments: _Segments, planned: int) -> _Layout:
    """The layout with the least work: longer rows have less padding, but cost more attention.

    If the sequences were chosen to fill rows of the length `planned`, these are taken, so that there are few shapes.
    """
    num_tokens, longest = int(segments.lengths.sum()), int(segments.lengths.max())
    order, lengths = segments.order(), segments.lengths.tolist()
    if num_tokens <= PREFERRED_ROW_LENGTH:
        return _lay_out(segments, order, lengths, _round_up_length(num_tokens))
    if longest <= planned and not segments.shared.any():
        return _lay_out(segments, order, lengths, planned)
    preferred = _SHARING_ROW_LENGTH if segments.shared.any() else PREFERRED_ROW_LENGTH
    shortest = max(_MIN_ROW_LENGTH, _round_up_length(longest))
    best = _lay_out(segments, order, lengths, shortest)
    for row_length in range(shortest + _ROW_LENGTH_STEP, preferred + 1, _ROW_LENGTH_STEP):
        if cost_of(-(-num_tokens // row_length), row_length) < best.cost:  # of rows without padding
            best = min(best, _lay_out(segments, order, lengths, row_length), key=lambda layout: layout.cost)
    return best


def _round_up_length(num_tokens: int) -> int:
    """The next multiple of a step, which is 16 for up to 512 tokens, and 1/32 to 1/16 of longer rows."""
    step = max(_ROW_LENGTH_STEP, (1 << (num_tokens - 1).bit_length()) // 32)
    return -(-num_tokens // step) * step


def _lay_out(segments: _Segments, order: Sequence[int], lengths: Sequence[int], row_length: int) -> _Layout:
    rows = best_fit(order, lengths, row_length)
    if not segments.shared.any():
        return _Layout(segments, row_length, rows, [])
    prefixes: list[int] = segments.prefixes.tolist()
    outside = [{prefixes[segment] for segment in row if segment < len(prefixes)} - {*row} for row in rows]
    return _Layout(segments, row_length, rows, [sorted(each) for each in outside])
