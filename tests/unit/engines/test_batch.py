from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.engines.batch import Batch
from bei_core.tasks import Tokens
from tests.fakes import tokens_of
from tests.strategies import token_sequences


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
