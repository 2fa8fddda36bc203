"""Every text of a part is in one batch, no batch is too large, and little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.bench.workload import texts
from bei_core.engines.batch import Batch
from bei_core.engines.openvino.packing import PackedRows, pack_rows
from bei_core.jobs.batches import Planned, plan_batches
from bei_core.tasks import Tokens

LENGTHS = st.lists(st.integers(1, 700), max_size=200)


def lengths_of(workload: str, num_texts: int) -> list[int]:
    """The numbers of tokens of texts, about as a tokenizer gives them."""
    return [2 + len(text.split()) * 4 // 3 for text in texts(workload, num_texts, 0)]


@given(lengths=LENGTHS, budget=st.integers(1, 2048))
def test_every_text_is_in_one_batch_of_at_most_the_budget_or_alone(lengths: list[int], budget: int) -> None:
    batches = [batch.indices for batch in plan_batches(lengths, budget)]
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= max(budget, 128)


@given(lengths=LENGTHS, max_tokens=st.integers(1, 700), max_items=st.integers(1, 9))
def test_a_batch_has_at_most_the_tokens_and_texts_that_are_set(
    lengths: list[int], max_tokens: int, max_items: int
) -> None:
    batches = [batch.indices for batch in plan_batches(lengths, 1024, max_tokens, max_items)]
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_items
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= max_tokens


@pytest.mark.parametrize(("num_texts", "sizes"), [(341, [170, 171]), (256, [256]), (600, [200, 200, 200])])
def test_a_batch_of_too_many_texts_is_divided_evenly(num_texts: int, sizes: list[int]) -> None:
    assert [len(batch.indices) for batch in plan_batches([3] * num_texts, 4096, max_items=256)] == sizes


@given(lengths=LENGTHS)
def test_the_longest_text_is_in_the_first_batch(lengths: list[int]) -> None:
    first = next(plan_batches(lengths, 1024), Planned([], 0))
    assert not lengths or max(lengths) in [lengths[index] for index in first.indices]


@pytest.mark.parametrize("num_texts", [512, 1024, 4096])
@pytest.mark.parametrize("workload", ["tiny", "short", "mixed", "long"])
def test_less_than_3_percent_of_the_tokens_are_padding(workload: str, num_texts: int) -> None:
    lengths = lengths_of(workload, num_texts)
    assert 1 - sum(lengths) / sum(rows.input_ids.size for rows in packed(lengths)) < 0.03


@pytest.mark.parametrize(
    ("lengths", "row_length"),
    [
        ([64] * 512, 64),
        ([60 + index % 4 for index in range(512)], 64),
        ([41 + index % 39 for index in range(512)], 128),  # two in a row
        (lengths_of("short", 512), 80),
    ],
)
def test_a_part_has_rows_of_the_length_that_is_least_work(lengths: list[int], row_length: int) -> None:
    assert {batch.row_length for batch in plan_batches(lengths, 1024)} == {row_length}
    assert {rows.input_ids.shape[1] for rows in packed(lengths)} == {row_length}


def test_the_engine_meets_few_shapes_and_all_of_them_early() -> None:
    lengths, seen, counts = lengths_of("short", 40 * 1024), set[object](), list[int]()
    for first in range(0, len(lengths), 1024):
        seen.update((rows.input_ids.shape, len(rows.starts)) for rows in packed(lengths[first : first + 1024]))
        counts.append(len(seen))
    assert counts[-1] == counts[0] <= 4  # each takes about 1 MB in the engine


def packed(lengths: Sequence[int]) -> Iterator[PackedRows]:
    """The batches of a part as the CPU engine packs them."""
    for batch in plan_batches(lengths, 1024):
        zeros = [np.zeros(lengths[index], np.int32) for index in batch.indices]
        yield pack_rows(Batch.pack([Tokens(ids, ids) for ids in zeros], batch.row_length))
