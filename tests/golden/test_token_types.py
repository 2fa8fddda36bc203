"""Token types of GTE: gte-large-en-v1.5 has a table of several types, and gte-multilingual-base of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bei_core.checkpoint import resolve
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.checkpoints import descriptions, write
from tests.golden.engines import built

pytestmark = pytest.mark.usefixtures("compiled_once")

WORDS, TYPES = "new.embeddings.word_embeddings.weight", "new.embeddings.token_type_embeddings.weight"
SHIFT = 150  # the word SHIFT + i is the word i with the embedding of type 1 in place of that of type 0
IDS = np.array([5, 17, 40, 99, 2, 60, 31], np.int32)
SECOND = np.array([0, 0, 0, 0, 1, 1, 1], np.int32)


def reranker(num_types: int, folder: Path) -> Engine:
    """A GTE reranker whose words from SHIFT on are words of the second type."""
    case = next(case for case in descriptions() if case.name == "gte-multilingual-rerank")
    tensors = {name: what.replace("F16", "F32") for name, what in case.weights["model.safetensors"].items()}
    tensors[TYPES] = f"F32[{num_types},32]"
    case = replace(case, config=case.config | {"type_vocab_size": num_types}, weights={"model.safetensors": tensors})
    write(folder / "model", case.content())
    weights = load_file(folder / "model" / "model.safetensors")
    weights[WORDS][SHIFT : SHIFT + 100] = weights[WORDS][:100] + weights[TYPES][-1] - weights[TYPES][0]
    save_file(weights, folder / "model" / "model.safetensors")
    checkpoint = resolve(str(folder / "model"))
    return built(checkpoint, read_spec(checkpoint), folder / "engine").engine


def test_a_token_of_the_second_type_has_its_embedding(tmp_path: Path) -> None:
    engine = reranker(2, tmp_path)
    pair, first, shifted = (
        engine.forward(Batch.pack([Tokens(ids, types)]))[0, 0]
        for ids, types in ((IDS, SECOND), (IDS, 0 * SECOND), (IDS + SHIFT * SECOND, 0 * SECOND))
    )
    assert pair == pytest.approx(shifted, abs=1e-4)
    assert abs(pair - first) > 0.01


def test_the_only_type_is_that_of_every_token(tmp_path: Path) -> None:
    engine = reranker(1, tmp_path)
    pair, first = (engine.forward(Batch.pack([Tokens(IDS, types)]))[0, 0] for types in (SECOND, 0 * SECOND))
    assert pair == first
