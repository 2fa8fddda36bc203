"""What `lay_out` promises of any batch: nothing lost, nothing mixed up, little padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bei_core.engines.batch import Batch
from bei_core.engines.openvino.packing import ROW, Grid, lay_out
from tests.fakes import tokens_of_length
from tests.strategies import batches, lengths

PAD = -7  # no id, so that padding in a wrong place is seen


def batch_of(sizes: list[int]) -> Batch:
    return Batch.pack([tokens_of_length(size, first=index + 1) for index, size in enumerate(sizes)])


def rows_of_texts(grid: Grid) -> list[list[int]]:
    """Of each row, the texts in it."""
    return [sorted(set(row.tolist()) - {-1}) for row in grid.segment_ids]


def places(grid: Grid, batch: Batch) -> Iterator[tuple[int, slice]]:
    """Each text of the batch, and where it lies in the rows laid end to end."""
    for text in range(len(batch)):
        yield text, slice(grid.starts[text], grid.starts[text] + grid.lengths[text])


@given(batches())
def test_every_token_is_in_its_texts_place_and_in_no_other(batch: Batch) -> None:
    grid = lay_out(batch, pad_id=PAD)
    ids, types = grid.input_ids.ravel(), grid.type_ids.ravel()
    seen = np.zeros(ids.size, int)
    for text, place in places(grid, batch):
        flat = slice(batch.cu_seqlens[text], batch.cu_seqlens[text + 1])
        assert np.array_equal(ids[place], batch.input_ids[flat])
        assert np.array_equal(types[place], batch.type_ids[flat])
        seen[place] += 1
    assert set(seen) <= {0, 1}
    assert seen.sum() == batch.num_tokens
    assert (ids[seen == 0] == PAD).all()


@given(batches())
def test_segments_are_whole_and_side_by_side_within_one_row(batch: Batch) -> None:
    grid = lay_out(batch)
    width = grid.segment_ids.shape[1]
    segments, positions = grid.segment_ids.ravel(), grid.position_ids.ravel()
    for text, place in places(grid, batch):
        assert np.flatnonzero(segments == text).tolist() == list(range(place.start, place.stop))
        assert positions[place].tolist() == list(range(batch.lengths[text]))
        assert place.start // width == (place.stop - 1) // width
    padding = segments == -1
    assert padding.sum() == segments.size - batch.num_tokens
    for array in (grid.position_ids, grid.type_ids, grid.input_ids):
        assert not array.ravel()[padding].any()


@given(batches())
def test_lengths_are_the_batchs_and_all_is_32_bit(batch: Batch) -> None:
    grid = lay_out(batch)
    assert grid.lengths[: len(batch)].tolist() == batch.lengths.tolist()
    for array in grid.arrays():
        assert array.dtype == np.int32
        assert array.flags.c_contiguous


@given(batches(max_len=20))
def test_texts_made_up_for_a_round_number_are_the_grids_first_token(batch: Batch) -> None:
    grid = lay_out(batch)
    assert len(grid.starts) == len(grid.lengths) >= len(batch)
    assert len(grid.starts) in {1, 2, 4} or (len(grid.starts) % 8 == 0 and len(grid.starts) - len(batch) < 8)
    assert not grid.starts[len(batch) :].any()
    assert (grid.lengths[len(batch) :] == 1).all()  # never 0, by which a mean would divide


@given(batches())
def test_rows_hold_the_longest_text_and_come_in_few_lengths(batch: Batch) -> None:
    num_rows, width = lay_out(batch).input_ids.shape
    assert width % 16 == 0
    assert width >= batch.max_len
    if batch.num_tokens <= ROW:
        assert num_rows == 1
        assert width - batch.num_tokens < 16
    else:
        assert width <= ROW or width - batch.max_len < 16


@given(batches())
def test_no_text_of_a_later_row_would_have_fitted_in_an_earlier_one(batch: Batch) -> None:
    grid = lay_out(batch)
    filled = (grid.segment_ids >= 0).sum(axis=1)
    shortest = [min(batch.lengths[texts]) for texts in rows_of_texts(grid)]
    for early, late in combinations(range(len(filled)), 2):
        assert filled[early] + shortest[late] > grid.segment_ids.shape[1]


@given(batches())
def test_padding_stays_below_a_half_and_a_row(batch: Batch) -> None:
    grid = lay_out(batch)
    num_rows, width = grid.input_ids.shape
    padding = num_rows * width - batch.num_tokens
    assert grid.padding_share == 1 - batch.num_tokens / (num_rows * width)
    # Any two rows hold more than one row can; and all but the last lack less than the longest text.
    assert padding < batch.num_tokens + width
    assert padding < (num_rows - 1) * batch.max_len + width


@given(st.lists(lengths(64), min_size=200, max_size=200))
def test_many_short_texts_leave_little_padding(sizes: list[int]) -> None:
    grid = lay_out(batch_of(sizes))
    fewest = math.ceil(sum(sizes) / grid.input_ids.shape[1])
    assert grid.input_ids.shape[0] <= 11 / 9 * fewest + 2


@given(st.lists(st.integers(1, ROW), min_size=1, max_size=7))
def test_rows_are_at_most_11_9_of_the_fewest_and_6_9(sizes: list[int]) -> None:
    grid = lay_out(batch_of(sizes))
    assert grid.input_ids.shape[0] <= 11 / 9 * fewest_rows(tuple(sizes), grid.input_ids.shape[1]) + 6 / 9  # Dósa 2007


@given(batches())
def test_the_same_batch_is_always_laid_out_the_same(batch: Batch) -> None:
    for first, second in zip(lay_out(batch).arrays(), lay_out(batch).arrays(), strict=True):
        assert np.array_equal(first, second)


def test_one_text_takes_one_short_row() -> None:
    for length, width in ((1, 16), (16, 16), (17, 32), (127, 128), (128, 128), (129, 144), (256, 256), (257, 272)):
        assert lay_out(batch_of([length])).input_ids.shape == (1, width)


def test_longest_goes_first_into_the_first_row_with_room() -> None:
    grid = lay_out(batch_of([20, 100, 38, 90, 8]))
    assert rows_of_texts(grid) == [[0, 1, 4], [2, 3]]
    assert grid.starts[:5].tolist() == [100, 0, 128 + 90, 128, 120]


def fewest_rows(sizes: tuple[int, ...], width: int) -> int:
    """By trying everything: the first text with each choice of the others that fits beside it."""
    if not sizes:
        return 0
    first, rest = sizes[0], range(1, len(sizes))
    best = len(sizes)
    for count in range(len(sizes)):
        for beside in combinations(rest, count):
            if first + sum(sizes[text] for text in beside) <= width:
                left = tuple(sizes[text] for text in rest if text not in beside)
                best = min(best, 1 + fewest_rows(left, width))
    return best
