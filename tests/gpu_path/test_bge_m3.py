"""bge-m3 on the torch engine: the vectors and weights of FlagEmbedding in one pass. TensorRT-LLM: dense vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from bei_core.tasks import Sparse, Tokens, l2_normalize
from tests.golden.bge_m3 import EXPECTED, write
from tests.golden.tolerance import BF16_WIDE, F32, compare
from tests.gpu_path.conftest import Builder

ARRAYS = load_file(EXPECTED)
ENDS = np.cumsum(ARRAYS["ids_counts"])[:-1]
ITEMS = [Tokens(ids, np.zeros_like(ids)) for ids in np.split(ARRAYS["ids"], ENDS)]
TOLERANCES = {"float32": F32, "bfloat16": BF16_WIDE}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_torch_gives_all_three_in_a_batch_and_alone(dtype: str, built: Builder, tmp_path: Path) -> None:
    checkpoint = resolve(str(write(tmp_path / "bge-m3")))
    engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype=dtype).engine
    assert (engine.info.row_width, engine.info.token_width, engine.info.weighs_terms) == (32, 32, True)
    singles = [engine.forward_tokens(Batch.pack([item])) for item in ITEMS]
    alone = tuple(np.concatenate(parts) for parts in zip(*singles, strict=True))
    for rows, of_tokens in (engine.forward_tokens(Batch.pack(ITEMS)), alone):
        compare(l2_normalize(rows), ARRAYS["dense"], TOLERANCES[dtype])
        parts = np.split(of_tokens, ENDS)
        compare(np.concatenate([part[1:, :-1] for part in parts]), ARRAYS["colbert"], TOLERANCES[dtype])
        terms = [Sparse.of_tokens(item.ids, part[:, -1]) for item, part in zip(ITEMS, parts, strict=True)]
        if dtype == "float32":
            found = [each.without((0, 1, 2, 3)) for each in terms]
            assert np.concatenate([each.indices for each in found]).tolist() == ARRAYS["terms"].tolist()
            assert np.abs(np.concatenate([each.values for each in found]) - ARRAYS["weights"]).max() <= 1e-5


def test_tensorrt_llm_gives_dense_vectors(built: Builder, tmp_path: Path) -> None:
    checkpoint = resolve(str(write(tmp_path / "bge-m3")))
    engine = built(checkpoint, read_spec(checkpoint), engine="tensorrt_llm", dtype="float32").engine
    assert (engine.info.token_width, engine.info.weighs_terms) == (0, False)
    compare(l2_normalize(engine.forward(Batch.pack(ITEMS))), ARRAYS["dense"], F32)
