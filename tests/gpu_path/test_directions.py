"""Sliding windows in both directions and by `layer_types`, and the soft cap of Gemma 3: as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from tests.golden.cases import GROUP_CASES
from tests.golden.padding import tokens
from tests.golden.tied import changed
from tests.gpu_path.conftest import Builder

NAMES = {case.architecture: case.name for case in GROUP_CASES}  # one checkpoint of each class


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("MistralModel", {"is_causal": False, "sliding_window": 4}),
        ("Gemma3TextModel", {"is_causal": False, "use_bidirectional_attention": False, "sliding_window": 4}),
        ("Gemma3TextModel", {"use_bidirectional_attention": True, "sliding_window": 8}),
        ("Gemma3TextModel", {"use_bidirectional_attention": True, "is_causal": False, "sliding_window": 8}),
        ("MistralModel", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}),
        ("Gemma3TextModel", {"attn_logit_softcapping": 0.5}),
    ],
)
def test_the_vectors_of_all_tokens_are_those_of_transformers(
    architecture: str, config: dict[str, Any], built: Builder, tmp_path: Path
) -> None:
    checkpoint = changed(NAMES[architecture], tmp_path / "model", **config)
    engine = built(checkpoint, read_spec(checkpoint, pooling="mean"), engine="torch", dtype="float32").engine
    ids = np.arange(5, 205, 10, dtype=np.int32)
    _, found = engine.forward_tokens(Batch.pack([tokens(ids)]))
    model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(torch.tensor(ids)[None]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
