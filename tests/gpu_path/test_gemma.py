"""Gemma 1 on the engine for GPUs, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from tests.golden.gemma import LLAMA, as_gemma
from tests.golden.padding import tokens
from tests.gpu_path.conftest import Builder


def test_the_vectors_are_those_of_transformers(built: Builder, tmp_path: Path) -> None:
    checkpoint = as_gemma(tmp_path / "model")
    ids = max(LLAMA.ids, key=len)
    engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor(ids, dtype=torch.long)[None]).last_hidden_state[0, -1:].numpy()
    np.testing.assert_allclose(engine.forward(Batch.pack([tokens(ids)])), expected, rtol=1e-3, atol=1e-4)
    assert type(model).__name__ == "GemmaModel"
