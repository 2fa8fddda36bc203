"""A MultiVectorEncoder gives the normalised vectors of all tokens, with and without a Dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.models.kind import Kind
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.engines import built
from tests.golden.multi_vector import MULTI_VECTOR, WITHOUT_DENSE
from tests.golden.sentence import HIDDEN, Weights, bert

pytestmark = pytest.mark.usefixtures("compiled_once")

IDS = [[2, 17, 30, 3], [2, 41, 3]]
DENSE: Weights = {"1_Dense/": {"linear.weight": (6, HIDDEN)}}


def token_vectors(folder: Path, files: dict[str, Any], weights: Weights | None = None) -> npt.NDArray[np.float32]:
    """f32[T, E]: the vectors of all tokens."""
    checkpoint = resolve(str(bert(files, weights).write(folder / "model")))
    spec = read_spec(checkpoint)
    assert (spec.kind is Kind.LATE_INTERACTION) == bool(files)
    engine = built(checkpoint, spec, folder / "engine").engine
    batch = Batch.pack([Tokens(np.array(ids, np.int32), np.zeros(len(ids), np.int32)) for ids in IDS])
    return engine.forward_tokens(batch)[1]


def test_the_vectors_are_normalised_after_the_dense(tmp_path: Path) -> None:
    hidden = token_vectors(tmp_path / "plain", {})
    checkpoint = bert(MULTI_VECTOR, DENSE).write(tmp_path / "weights")
    weight = resolve(str(checkpoint)).tensors("1_Dense").f32("linear.weight")
    for name, files, weights, expected in (
        ("dense", MULTI_VECTOR, DENSE, hidden @ weight.T),
        ("normalize", WITHOUT_DENSE, None, hidden),
    ):
        found = token_vectors(tmp_path / name, files, weights)
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
