"""Texts that contain the padding token: their vectors are those of transformers, in a batch and alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from tests.golden.cases import GOLDEN
from tests.golden.padding import PADDING_IDS, moved, text, tokens, without_padding
from tests.gpu_path.conftest import Builder
from tests.gpu_path.test_parity import runs

OWN_CODE = "xlmr-flash-mean-tanh"  # transformers has no class for it
CLASSIFIER = "mpnet-topics-pad5-f16"  # has no vectors of tokens
ON_ENGINES = [
    (name, engine) for name in PADDING_IDS for engine in ("torch", "tensorrt_llm") if runs(engine, GOLDEN / name)
]


@pytest.mark.parametrize("name", sorted(PADDING_IDS.keys() - {OWN_CODE, CLASSIFIER}))
def test_the_vectors_of_all_tokens_are_those_of_transformers(name: str, built: Builder) -> None:
    checkpoint, ids = resolve(str(GOLDEN / name)), text(PADDING_IDS[name])
    engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    _, found = engine.forward_tokens(Batch.pack([tokens(ids), tokens(ids[1:7]), tokens(ids)]))
    model = AutoModel.from_pretrained(GOLDEN / name, dtype=torch.float32).eval()
    with torch.inference_mode():
        inputs = [torch.tensor(each)[None] for each in (ids, ids[1:7], ids)]
        expected = torch.cat([model(each, torch.ones_like(each)).last_hidden_state[0] for each in inputs])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "engine"), ON_ENGINES)
def test_a_padding_token_in_a_text_has_no_position_and_the_next_token_the_next_one(
    name: str, engine: str, built: Builder, tmp_path: Path
) -> None:
    ids = text(PADDING_IDS[name])
    plain = Batch.pack([tokens(without_padding(ids, PADDING_IDS[name]))])
    (expected,), found = (
        built(checkpoint, read_spec(checkpoint), engine=engine, dtype="float32").engine.forward(batch)
        for checkpoint, batch in (
            (moved(name, tmp_path / "moved"), plain),
            (resolve(str(GOLDEN / name)), Batch.pack([tokens(ids[2:9]), tokens(ids)])),
        )
    )
    np.testing.assert_allclose(found[1], expected, rtol=1e-4, atol=1e-5)
