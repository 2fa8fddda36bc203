"""Gemma 1 and bge-reranker-v2-gemma on the engines for GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from tests.golden.gemma import LLAMA, as_gemma, as_reranker
from tests.golden.padding import tokens
from tests.gpu_path.conftest import Builder


@pytest.mark.parametrize("name", ["torch", "tensorrt_llm"])
def test_the_vectors_are_those_of_transformers(name: str, built: Builder, tmp_path: Path) -> None:
    checkpoint = as_gemma(tmp_path / "model")
    ids = max(LLAMA.ids, key=len)
    engine = built(checkpoint, read_spec(checkpoint), engine=name, dtype="float32").engine
    model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor(ids, dtype=torch.long)[None]).last_hidden_state[0, -1:].numpy()
    np.testing.assert_allclose(engine.forward(Batch.pack([tokens(ids)])), expected, rtol=1e-3, atol=1e-4)
    assert type(model).__name__ == "GemmaModel"


@pytest.mark.parametrize("name", ["torch", "tensorrt_llm"])
def test_a_reranker_without_a_token_for_no_scores_by_the_logit_of_yes(
    name: str, built: Builder, tmp_path: Path
) -> None:
    checkpoint, spec, expected = as_reranker(tmp_path / "model")
    engine = built(checkpoint, spec, engine=name, dtype="float32").engine
    found = engine.forward(Batch.pack([tokens(ids) for ids in LLAMA.ids]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
