"""Token types: each token of a pair has the embedding of its text, unless the table has one type only."""

from __future__ import annotations

from pathlib import Path

import pytest

from bei_core.models.spec import read_spec
from tests.golden.token_types import reranker, roberta, scores
from tests.gpu_path.conftest import Builder


@pytest.mark.parametrize("num_types", [1, 2])
def test_a_token_has_the_embedding_of_its_type(num_types: int, built: Builder, tmp_path: Path) -> None:
    checkpoint = reranker(num_types, tmp_path)
    pair, first, shifted = scores(built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine)
    assert pair == pytest.approx(shifted if num_types == 2 else first, abs=1e-4)
    assert (abs(pair - first) > 0.01) == (num_types == 2)


def test_the_only_type_of_a_roberta_is_that_of_every_token(built: Builder, tmp_path: Path) -> None:
    checkpoint = roberta(tmp_path)
    pair, first, _ = scores(built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine)
    assert pair == first
