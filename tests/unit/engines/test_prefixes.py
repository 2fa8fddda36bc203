"""Which first tokens the sequences of a batch share, and what a batch costs with them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.engines import prefixes
from bei_core.engines.batch import Batch
from bei_core.engines.prefixes import MIN_LENGTH, BatchCost, shared_prefixes
from bei_core.serving.queue import Item, Pending
from tests.fakes import tokens_of

PAD = 0
LONG = list(range(5, 5 + 2 * MIN_LENGTH))


def found(*sequences: list[int]) -> list[tuple[int, list[int]]]:
    """Each shared prefix: its length and its sequences."""
    batch = Batch.pack([tokens_of(*ids) for ids in sequences])
    return [(prefix.length, sorted(prefix.sequences)) for prefix in shared_prefixes(batch, pad_id=PAD)]


def cost_of(sequences: Sequence[Sequence[int]]) -> int:
    cost = BatchCost()
    for ids in sequences:
        cost = cost.plus(np.array(ids, np.int32))
    return cost.num_tokens


def test_the_longest_common_prefix_of_several_sequences_is_found() -> None:
    assert found([*LONG, 1], [9, *LONG], [*LONG, 2, 3], LONG) == [(len(LONG), [0, 2, 3])]


def test_each_sequence_has_the_prefix_that_saves_the_most() -> None:
    one, other = [*LONG, *range(50, 90)], [*LONG, *range(150, 190)]
    assert found([*one, 1], [*other, 1], [*one, 2], [*other, 2]) == [(72, [0, 2]), (72, [1, 3])]
    assert found([*one, 1], [*one, 2], [*LONG, 1], [*LONG, 2]) == [(72, [0, 1]), (len(LONG), [2, 3])]
    assert found([*LONG, 1, 2], [*LONG, 1, 3], [*LONG, 4], [*LONG, 5]) == [(len(LONG), [0, 1, 2, 3])]


def test_a_short_prefix_is_not_shared() -> None:
    assert found([*LONG[: MIN_LENGTH - 1], 1], [*LONG[: MIN_LENGTH - 1], 2]) == []
    assert found([*LONG[:MIN_LENGTH], 1], [*LONG[:MIN_LENGTH], 2]) == [(MIN_LENGTH, [0, 1])]


def test_the_last_token_that_is_not_padding_is_after_the_prefix() -> None:
    assert found([*LONG, PAD, PAD], [*LONG, PAD, 7]) == [(len(LONG) - 1, [0, 1])]
    assert found([PAD] * 40, [PAD] * 41) == []


def _starts(ids: list[int]) -> list[list[int]]:
    return [ids[:length] for length in range(1, len(ids) + 1)]


def num_common(sequences: Sequence[Sequence[int]]) -> int:
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({ids[i] for ids in sequences}) > 1), shortest)


@given(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=5), min_size=1, max_size=6))
def test_prefixes_are_common_and_save_as_much_as_the_best_one_alone(sequences: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_LENGTH", 1)
        chosen = found(*sequences)
        cost = cost_of(sequences)
    members = [sequence for _, group in chosen for sequence in group]
    assert len(members) == len(set(members))
    for length, group in chosen:
        assert len(group) > 1
        assert num_common([sequences[sequence] for sequence in group]) >= length
    saved = sum(length * (len(group) - 1) for length, group in chosen)
    groups = [
        [ids for ids in sequences if ids[: len(first)] == first] for whole in sequences for first in _starts(whole)
    ]
    assert saved >= max(num_common(group) * (len(group) - 1) for group in groups)
    assert max(map(len, sequences)) <= cost <= sum(map(len, sequences))


def test_a_batch_costs_the_first_tokens_of_neighbours_once() -> None:
    assert cost_of([[*LONG, 1], [*LONG, 2], [*LONG, 3]]) == len(LONG) + 3
    assert cost_of([[*LONG, 1], [9, 9], [*LONG, 3]]) == 2 * len(LONG) + 4
    assert cost_of([LONG] * 5) == len(LONG) + 4  # each item costs something, so that a batch ends


@pytest.mark.parametrize(("shares_prefixes", "num_taken"), [(False, 1), (True, 9)])
def test_the_queue_counts_equal_first_tokens_once_only_if_the_engine_shares_them(
    shares_prefixes: bool, num_taken: int
) -> None:
    pending: Pending[SimpleNamespace] = Pending(48, shares_prefixes=shares_prefixes)
    for index in range(20):
        pending.put([Item(tokens_of(*range(40)), SimpleNamespace(abandoned=False), index, rank=0.0)], now=0.0)
    assert len(pending.take(48, now=0.0).items) == num_taken
