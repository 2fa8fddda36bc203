"""Token types: gte-large-en-v1.5 has a table of several types, gte-multilingual-base and RoBERTas of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.models.spec import read_spec
from tests.golden.engines import built
from tests.golden.token_types import reranker, roberta, scores

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_a_token_of_the_second_type_has_its_embedding(tmp_path: Path) -> None:
    checkpoint = reranker(2, tmp_path)
    pair, first, shifted = scores(built(checkpoint, read_spec(checkpoint), tmp_path / "engine").engine)
    assert pair == pytest.approx(shifted, abs=1e-4)
    assert abs(pair - first) > 0.01


@pytest.mark.parametrize("make", [partial(reranker, 1), roberta])
def test_the_only_type_is_that_of_every_token(make: Callable[[Path], Checkpoint], tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    pair, first, _ = scores(built(checkpoint, read_spec(checkpoint), tmp_path / "engine").engine)
    assert pair == first
