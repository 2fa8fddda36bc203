"""Gemma 1 on the CPU engine, and bge-reranker-v2-gemma, whose score is the logit of one token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bei_core.engines.batch import Batch
from bei_core.models.kind import Kind
from bei_core.models.spec import read_spec
from bei_core.text.templates import find_template
from tests.golden.engines import built
from tests.golden.gemma import LLAMA, as_gemma, as_reranker
from tests.golden.padding import tokens

pytestmark = pytest.mark.usefixtures("compiled_once")

BATCH = Batch.pack([tokens(ids) for ids in LLAMA.ids])


def test_its_vectors_are_those_of_the_llama_that_computes_the_same(tmp_path: Path) -> None:
    checkpoint = as_gemma(tmp_path / "model")
    spec = read_spec(checkpoint)
    assert spec.kind is Kind.EMBEDDING
    found = built(checkpoint, spec, tmp_path / "engine").engine.forward(BATCH)
    np.testing.assert_allclose(found, LLAMA.raw, atol=2e-4)


def test_a_reranker_without_a_token_for_no_scores_by_the_logit_of_yes(tmp_path: Path) -> None:
    checkpoint, spec, expected = as_reranker(tmp_path / "model")
    found = built(checkpoint, spec, tmp_path / "engine").engine.forward(BATCH)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_template_of_bge_reranker_v2_gemma_is_found_by_its_name() -> None:
    found = find_template("BAAI/bge-reranker-v2-gemma")
    assert found is not None
    assert found.tokens == (None, "Yes")
    assert found.fill("a panda?", "a bear").text.startswith("A: a panda?\nB: a bear\nGiven a query A and a passage B, ")
    assert find_template("BAAI/bge-reranker-v2.5-gemma2-lightweight") is None
