"""Files with two matrices or biases that the class ties, on the engine for GPUs, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, T5EncoderModel

from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from bei_core.tasks import Rows
from tests.golden.cases import Ids
from tests.golden.padding import tokens
from tests.golden.tied import CASES, Tied, with_both
from tests.gpu_path.conftest import Builder

# With torch 2.14, the module of DeBERTa in transformers raises a warning, which is an error here.
KNOWN = [case for case in CASES if "deberta" not in case.name]


def expected(case: Tied, folder: Path, ids: Ids) -> Rows:
    """SPLADE's weights of terms, or the vectors of tokens."""
    kind = AutoModelForMaskedLM if case.name.startswith("splade") else T5EncoderModel
    model, inputs = kind.from_pretrained(folder, dtype=torch.float32).eval(), torch.tensor(ids)[None]
    with torch.inference_mode():
        if kind is T5EncoderModel:
            return np.asarray(model(inputs).last_hidden_state[0].numpy())
        return np.asarray(model(inputs).logits.amax(1).relu().log1p().numpy())


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: f"{case.name}-{case.target}")
def test_the_output_is_that_of_transformers(case: Tied, built: Builder, tmp_path: Path) -> None:
    checkpoint = with_both(case, tmp_path / "model")
    is_sparse = case.name.startswith("splade")
    spec = read_spec(checkpoint, pooling="splade" if is_sparse else None)
    engine = built(checkpoint, spec, engine="torch", dtype="float32").engine
    ids = np.arange(3, 180, 15, dtype=np.int32)
    batch = Batch.pack([tokens(ids)])
    found = engine.forward(batch) if is_sparse else engine.forward_tokens(batch)[1]
    np.testing.assert_allclose(found, expected(case, checkpoint.folder, ids), rtol=1e-3, atol=1e-4)
