from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.engines.batch import Batch
from bei_core.tasks import Tokens
from tests.fakes import tokens_of
from tests.strategies import batches, token_sequences


@given(st.lists(token_sequences(), min_size=1, max_size=20))
def test_each_sequence_comes_back_from_its_place(items: list[Tokens]) -> None:
    batch = Batch.pack(items)
    assert len(batch) == len(items)
    for index, item in enumerate(items):
        place = slice(batch.cu_seqlens[index], batch.cu_seqlens[index + 1])
        assert np.array_equal(batch.input_ids[place], item.ids)
        assert np.array_equal(batch.type_ids[place], item.type_ids)
    assert batch.lengths.tolist() == [len(item) for item in items]
    assert batch.num_tokens == sum(map(len, items)) == batch.cu_seqlens[-1]
    assert batch.max_len == max(map(len, items))


@given(st.lists(token_sequences(), min_size=1, max_size=4))
def test_arrays_are_flat_and_32_bit(items: list[Tokens]) -> None:
    batch = Batch.pack(items)
    for array in (batch.input_ids, batch.type_ids, batch.cu_seqlens, batch.lengths):
        assert array.dtype == np.int32
        assert array.ndim == 1


@pytest.mark.parametrize("items", [[], [tokens_of()], [tokens_of(1), tokens_of()]], ids=["none", "empty", "one empty"])
def test_nothing_to_run_is_a_bug_of_the_caller(items: list[Tokens]) -> None:
    with pytest.raises(ValueError, match="this is a bug"):
        Batch.pack(items)


@given(batches(max_items=9, max_len=12), st.integers(1, 4), st.integers(1, 20))
def test_a_batch_is_split_in_order_within_both_limits(batch: Batch, max_items: int, max_tokens: int) -> None:
    parts = list(batch.split(max_items=max_items, max_tokens=max_tokens))
    for name in ("input_ids", "type_ids", "lengths", "skips"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tolist() == getattr(batch, name).tolist()
    for part in parts:
        assert len(part) <= max_items
        assert len(part) == 1 or part.num_tokens <= max_tokens
        assert part.max_len == part.lengths.max()


@pytest.mark.parametrize("lengths", [(1,), (5, 5), (9, 1, 1, 1), (1, 1, 1, 9), (3, 1, 4, 1, 5, 9, 2, 6)])
def test_even_parts_have_every_text_once_and_in_order(lengths: tuple[int, ...]) -> None:
    batch = Batch.pack([tokens_of(*range(length)) for length in lengths])
    parts = batch.even_parts(3)
    assert 1 <= len(parts) <= 3
    assert np.concatenate([part.input_ids for part in parts]).tolist() == batch.input_ids.tolist()
    assert [length for part in parts for length in part.lengths.tolist()] == list(lengths)
