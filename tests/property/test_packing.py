"""Properties of `pack_rows` for any batch: no token is lost or in a wrong sequence, and there is little padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bei_core.engines.batch import Batch
from bei_core.engines.best_fit import best_fit
from bei_core.engines.openvino.packing import PREFERRED_ROW_LENGTH, PackedRows, pack_rows
from bei_core.engines.prefixes import shared_prefixes
from bei_core.tasks import Tokens
from tests.fakes import tokens_of_length
from tests.strategies import batches, lengths

PAD = -7  # not a token id, so that padding inside a sequence is detected


def batch_of(sizes: list[int]) -> Batch:
    return Batch.pack([tokens_of_length(size, first=index + 1) for index, size in enumerate(sizes)])


def sequences_of_rows(packed: PackedRows) -> list[list[int]]:
    """The sequences in each row."""
    return [sorted(set(row.tolist()) - {-1}) for row in packed.segment_ids]


def spans(packed: PackedRows, batch: Batch) -> Iterator[tuple[int, slice]]:
    """Each sequence of the batch, with its slice of the flat rows."""
    for sequence in range(len(batch)):
        yield sequence, slice(packed.starts[sequence], packed.starts[sequence] + packed.lengths[sequence])


@given(batches())
def test_every_token_is_in_the_span_of_its_sequence_and_nowhere_else(batch: Batch) -> None:
    packed = pack_rows(batch, pad_id=PAD)
    ids, types = packed.input_ids.ravel(), packed.type_ids.ravel()
    seen = np.zeros(ids.size, int)
    for sequence, span in spans(packed, batch):
        flat = slice(batch.cu_seqlens[sequence], batch.cu_seqlens[sequence + 1])
        assert np.array_equal(ids[span], batch.input_ids[flat])
        assert np.array_equal(types[span], batch.type_ids[flat])
        seen[span] += 1
    assert set(seen) <= {0, 1}
    assert seen.sum() == batch.num_tokens
    assert (ids[seen == 0] == PAD).all()


@given(batches())
def test_sequences_are_contiguous_within_one_row(batch: Batch) -> None:
    packed = pack_rows(batch)
    row_length = packed.segment_ids.shape[1]
    segments, positions = packed.segment_ids.ravel(), packed.position_ids.ravel()
    for sequence, span in spans(packed, batch):
        assert np.flatnonzero(segments == sequence).tolist() == list(range(span.start, span.stop))
        assert positions[span].tolist() == list(range(batch.lengths[sequence]))
        assert span.start // row_length == (span.stop - 1) // row_length
    padding = segments == -1
    assert padding.sum() == segments.size - batch.num_tokens
    for array in (packed.position_ids, packed.type_ids, packed.input_ids):
        assert not array.ravel()[padding].any()


@given(batches())
def test_lengths_are_those_of_the_batch_and_all_arrays_are_int32(batch: Batch) -> None:
    packed = pack_rows(batch)
    assert packed.lengths[: len(batch)].tolist() == batch.lengths.tolist()
    for array in packed.graph_inputs():
        assert array.dtype == np.int32
        assert array.flags.c_contiguous


@given(batches(max_len=20))
def test_dummy_sequences_are_the_first_token_of_the_first_row(batch: Batch) -> None:
    packed = pack_rows(batch)
    assert len(packed.starts) == len(packed.lengths) >= len(batch)
    assert len(packed.starts) - len(batch) < 3 * len(batch)
    assert len(pack_rows(batch, is_wide=True).starts) - len(batch) < len(batch)
    assert not packed.starts[len(batch) :].any()
    assert (packed.lengths[len(batch) :] == 1).all()  # a mean divides by the length, so it must not be 0


def test_there_are_few_numbers_of_sequences() -> None:
    batches = [batch_of([1] * size) for size in range(1, 385)]
    assert {len(pack_rows(batch).starts) for batch in batches} == {1, 4, 16, 64, 256, 1024}
    assert {len(pack_rows(batch, is_wide=True).starts) for batch in batches} == {1 << bits for bits in range(10)}


@given(batches())
def test_rows_fit_the_longest_sequence_and_have_few_different_lengths(batch: Batch) -> None:
    num_rows, row_length = pack_rows(batch).input_ids.shape
    assert row_length % 16 == 0
    assert row_length >= batch.max_len
    if batch.num_tokens <= PREFERRED_ROW_LENGTH:
        assert num_rows == 1
        assert row_length - batch.num_tokens < 16
    else:
        assert row_length <= PREFERRED_ROW_LENGTH or row_length - batch.max_len < max(16, batch.max_len / 16)


@given(batches())
def test_no_row_begins_with_a_sequence_that_would_fit_in_an_earlier_one(batch: Batch) -> None:
    packed = pack_rows(batch)
    filled = (packed.segment_ids >= 0).sum(axis=1)
    longest = [max(batch.lengths[sequences]) for sequences in sequences_of_rows(packed)]  # it comes first
    for early, late in combinations(range(len(filled)), 2):
        assert filled[early] + longest[late] > packed.segment_ids.shape[1]


@given(batches())
def test_padding_stays_below_a_half_and_a_row(batch: Batch) -> None:
    packed = pack_rows(batch)
    num_rows, row_length = packed.input_ids.shape
    padding = num_rows * row_length - batch.num_tokens
    # Two rows together hold more than one row can; every row but the last has less padding than the longest sequence.
    assert padding < batch.num_tokens + row_length
    assert padding < (num_rows - 1) * batch.max_len + row_length


@given(st.lists(lengths(64), min_size=200, max_size=200))
def test_many_short_sequences_need_little_padding(sizes: list[int]) -> None:
    packed = pack_rows(batch_of(sizes))
    fewest = math.ceil(sum(sizes) / packed.input_ids.shape[1])
    assert packed.input_ids.shape[0] <= 11 / 9 * fewest + 2


@given(st.lists(st.integers(1, PREFERRED_ROW_LENGTH), min_size=1, max_size=7))
def test_there_are_at_most_11_9_of_the_fewest_rows_plus_6_9(sizes: list[int]) -> None:
    packed = pack_rows(batch_of(sizes))
    assert packed.input_ids.shape[0] <= 11 / 9 * fewest_rows(tuple(sizes), packed.input_ids.shape[1]) + 6 / 9
    assert packed.input_ids.shape[0] <= 3 / 2 * fewest_rows(tuple(sizes), packed.input_ids.shape[1])


@given(st.lists(st.integers(1, 40), max_size=60))
def test_every_sequence_is_in_the_fullest_row_with_space_for_it(sizes: list[int]) -> None:
    order = sorted(range(len(sizes)), key=lambda item: -sizes[item])
    row_of = {item: row for row, items in enumerate(best_fit(order, sizes, 40)) for item in items}
    assert sorted(row_of) == sorted(order)
    filled: list[int] = []
    for item in order:
        with_space = [used for used in filled if used + sizes[item] <= 40]
        if row_of[item] == len(filled):
            assert not with_space
            filled.append(0)
        else:
            assert filled[row_of[item]] == max(with_space)
        filled[row_of[item]] += sizes[item]


@given(batches())
def test_packing_is_deterministic(batch: Batch) -> None:
    for first, second in zip(pack_rows(batch).graph_inputs(), pack_rows(batch).graph_inputs(), strict=True):
        assert np.array_equal(first, second)


def test_a_single_sequence_has_one_row_as_short_as_possible() -> None:
    known = {1: 16, 16: 16, 17: 32, 127: 128, 128: 128, 129: 144, 256: 256, 257: 272, 512: 512, 513: 544}
    for length, row_length in known.items():
        assert pack_rows(batch_of([length])).input_ids.shape == (1, row_length)


def test_the_longest_sequence_is_placed_first_in_the_first_row_with_enough_space() -> None:
    packed = pack_rows(batch_of([20, 100, 38, 90, 8]))
    assert sequences_of_rows(packed) == [[0, 1, 4], [2, 3]]
    assert packed.starts[:5].tolist() == [100, 0, 128 + 90, 128, 120]


def fewest_rows(sizes: tuple[int, ...], row_length: int) -> int:
    """The fewest possible rows, by exhaustive search over which sequences share a row with the first one."""
    if not sizes:
        return 0
    first, rest = sizes[0], range(1, len(sizes))
    best = len(sizes)
    for count in range(len(sizes)):
        for beside in combinations(rest, count):
            if first + sum(sizes[sequence] for sequence in beside) <= row_length:
                left = tuple(sizes[sequence] for sequence in rest if sequence not in beside)
                best = min(best, 1 + fewest_rows(left, row_length))
    return best


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), min_size=2, max_size=30), st.integers(16, 150))
def test_each_token_of_a_sequence_with_a_shared_prefix_is_a_key_of_its_row_once(
    items: list[tuple[int, int]], length: int
) -> None:
    firsts = [np.arange(length) + 1000 * kind for kind in (1, 2, 3)]
    texts = [np.r_[firsts[kind], np.full(rest, 5 + n)].astype(np.int32) for n, (kind, rest) in enumerate(items)]
    batch = Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in texts])
    packed = pack_rows(batch, prefixes=shared_prefixes(batch, pad_id=0))
    assert np.array_equal(packed.input_ids.ravel()[packed.token_indices], batch.input_ids)
    assert packed.num_tokens == len(set(packed.token_indices.tolist())) <= batch.num_tokens
    row_length = packed.input_ids.shape[1]
    for sequence, ids in enumerate(texts):
        flat = packed.token_indices[batch.cu_seqlens[sequence] : batch.cu_seqlens[sequence + 1]]
        assert packed.position_ids.ravel()[flat].tolist() == list(range(len(ids)))
        assert packed.starts[sequence] + packed.lengths[sequence] - 1 == flat[-1]
        row, own, prefix = flat[-1] // row_length, packed.segment_ids.flat[flat[-1]], packed.prefix_ids.flat[flat[-1]]
        is_key = np.isin(packed.key_segment_ids[row], [own, prefix])
        assert sorted(packed.key_indices[row][is_key]) == sorted(flat)
