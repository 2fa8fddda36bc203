"""Several texts to a row: how a batch's tokens are laid out so that little is padding and few shapes occur.

The rows of a grid [R, L] hold whole texts, side by side; attention is confined to a text by its segment ids. With texts
of mixed length that leaves 3-6% padding where one text a row leaves a third to a half
(docs/decisions/004-packed-rows.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch

Ints: TypeAlias = npt.NDArray[np.int32]
_Placement: TypeAlias = tuple[list[int], list[int], int]  # row of each text, its offset there, number of rows

ROW = 128  # rows up to this length are tried; a longer text has rows about as long as itself
_STEP = 16  # row lengths come in steps of this
_SHORTEST = 64  # of several rows; everything that fits in one row of ROW has that row, as short as can be

# A token's attention costs as much as all else that is done for it in rows about this long (measured on MiniLM).
_ATTENTION_LEN = 768


@dataclass(frozen=True, slots=True)
class Grid:
    """A batch as the graph takes it."""

    input_ids: Ints  # [R, L]
    position_ids: Ints  # [R, L]
    segment_ids: Ints  # [R, L], -1 where there is padding
    type_ids: Ints  # [R, L]
    starts: Ints  # [B or more], where what is pooled of a text begins in the rows laid end to end
    lengths: Ints  # [B or more], tokens of it
    targets: Ints  # [T], where each token of the batch is in the rows laid end to end

    @property
    def padding_share(self) -> float:
        """Share (0 to 1) of the grid that is padding."""
        return 1.0 - len(self.targets) / self.input_ids.size

    def arrays(self) -> list[Ints]:
        """In the order of the graph's inputs."""
        return [self.input_ids, self.position_ids, self.segment_ids, self.type_ids, self.starts, self.lengths]


def lay_out(batch: Batch, *, pad_id: int = 0) -> Grid:
    """The batch in rows. There may be more `starts` than texts: see `_round_up`."""
    lengths = batch.lengths
    (rows, offsets, num_rows), row_len = _cheapest(lengths.tolist(), batch.max_len, batch.num_tokens)
    starts = np.array(rows, np.int32) * row_len + np.array(offsets, np.int32)
    # Where each token of the flat batch goes, and its place in its text.
    positions = np.arange(batch.num_tokens, dtype=np.int32) - np.repeat(batch.cu_seqlens[:-1], lengths)
    target = np.repeat(starts, lengths) + positions

    def spread(values: Ints, fill: int) -> Ints:
        flat = np.full(num_rows * row_len, fill, np.int32)
        flat[target] = values
        return flat.reshape(num_rows, row_len)

    spare = _round_up(len(batch)) - len(batch)
    return Grid(
        input_ids=spread(batch.input_ids, pad_id),
        position_ids=spread(positions, 0),
        segment_ids=spread(np.repeat(np.arange(len(batch), dtype=np.int32), lengths), -1),
        type_ids=spread(batch.type_ids, 0),
        starts=np.pad(starts + batch.skips, (0, spare)),
        lengths=np.pad(lengths - batch.skips, (0, spare), constant_values=1),
        targets=target,
    )


def _round_up(num_texts: int) -> int:
    """1, 2, 4, then multiples of 8: each number of texts that a grid meets first costs some milliseconds of set-up.

    The texts made up are the first token of the grid; their rows are dropped.
    """
    return next((few for few in (1, 2, 4) if num_texts <= few), -(-num_texts // 8) * 8)


def _cheapest(lengths: list[int], longest: int, num_tokens: int) -> tuple[_Placement, int]:
    """(placement, row length) of the least work: fewer padding tokens against shorter attention."""
    if num_tokens <= ROW:
        row_len = _steps(num_tokens)
        return _place(lengths, row_len), row_len
    shortest = max(_SHORTEST, _steps(longest))
    tried = [(_place(lengths, row_len), row_len) for row_len in range(shortest, max(ROW, shortest) + 1, _STEP)]
    return min(tried, key=lambda found: found[0][2] * found[1] * (1 + found[1] / _ATTENTION_LEN))


def _steps(num_tokens: int) -> int:
    return -(-num_tokens // _STEP) * _STEP


def _place(lengths: list[int], row_len: int) -> _Placement:
    """(row of each text, its offset there, number of rows): longest first, into the first row with room.

    First-fit decreasing needs at most 11/9 of the fewest rows, and a few more (Johnson 1973).
    """
    filled: list[int] = []
    rows, offsets = [0] * len(lengths), [0] * len(lengths)
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[text]
        row = next((row for row, used in enumerate(filled) if used + length <= row_len), len(filled))
        if row == len(filled):
            filled.append(0)
        rows[text], offsets[text] = row, filled[row]
        filled[row] += length
    return rows, offsets, len(filled)
