"""Several texts to a row: how a batch's tokens are laid out so that little is padding and few shapes occur.

The rows of a grid [R, L] hold whole texts, side by side; attention is confined to a text by its segment ids. With texts
of mixed length that leaves 3-6% padding where one text a row leaves a third to a half
(docs/decisions/004-packed-rows.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bei_core.batch import Batch

Ints = npt.NDArray[np.int32]

ROW = 128  # tokens a row, unless the longest text needs more or everything fits in less
_STEP = 16  # rows shorter than ROW come in steps of this; longer ones in steps of 128


@dataclass(frozen=True, slots=True)
class Grid:
    """A batch as the graph takes it."""

    input_ids: Ints  # [R, L]
    position_ids: Ints  # [R, L]
    segment_ids: Ints  # [R, L], -1 where there is padding
    type_ids: Ints  # [R, L]
    starts: Ints  # [B], in the rows laid end to end
    lengths: Ints  # [B]

    @property
    def padding_share(self) -> float:
        """Share (0 to 1) of the grid that is padding."""
        return 1.0 - float(self.lengths.sum()) / self.input_ids.size

    def arrays(self) -> list[Ints]:
        """In the order of the graph's inputs."""
        return [self.input_ids, self.position_ids, self.segment_ids, self.type_ids, self.starts, self.lengths]


def lay_out(batch: Batch, *, pad_id: int = 0) -> Grid:
    """The batch in rows."""
    lengths, row_len = batch.lengths, row_length(batch)
    rows, offsets, num_rows = _place(lengths.tolist(), row_len)
    starts = np.array(rows, np.int32) * row_len + np.array(offsets, np.int32)
    # Where each token of the flat batch goes, and its place in its text.
    positions = np.arange(batch.num_tokens, dtype=np.int32) - np.repeat(batch.cu_seqlens[:-1], lengths)
    target = np.repeat(starts, lengths) + positions
    shape = (num_rows, row_len)

    def spread(values: Ints, fill: int) -> Ints:
        flat = np.full(num_rows * row_len, fill, np.int32)
        flat[target] = values
        return flat.reshape(shape)

    return Grid(
        input_ids=spread(batch.input_ids, pad_id),
        position_ids=spread(positions, 0),
        segment_ids=spread(np.repeat(np.arange(len(batch), dtype=np.int32), lengths), -1),
        type_ids=spread(batch.type_ids, 0),
        starts=starts,
        lengths=lengths.astype(np.int32),
    )


def row_length(batch: Batch) -> int:
    """Tokens a row: all of a small batch in one, else ROW, else what the longest text needs."""
    needed = batch.num_tokens if batch.num_tokens <= ROW else batch.max_len
    step = _STEP if batch.num_tokens <= ROW else ROW
    return -(-needed // step) * step


def _place(lengths: list[int], row_len: int) -> tuple[list[int], list[int], int]:
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
