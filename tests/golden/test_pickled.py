"""A folder with pytorch_model.bin gives bit for bit the rows of the same folder with safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden import bge_m3
from tests.golden.cases import CASES
from tests.golden.checkpoints import made
from tests.golden.engines import built
from tests.torch_file import pickle_weights

pytestmark = pytest.mark.usefixtures("compiled_once")

IDS = CASES[0].ids[:8]  # every model here knows them


@pytest.mark.parametrize(
    ("name", "by_columns"),
    [("bert-max-gamma-beta-f16", True), ("bert-mean-max-bf16-sharded", False), ("bert-last-dense-tanh", False)],
)
def test_pickled_weights_give_the_same_rows(name: str, by_columns: bool, tmp_path: Path) -> None:
    shutil.copytree(made() / name, tmp_path / "safe")
    same_rows(tmp_path, by_columns=by_columns)


def test_bge_m3_as_published_gives_the_same_rows_and_tokens(tmp_path: Path) -> None:
    bge_m3.write(tmp_path / "safe")
    same_rows(tmp_path, by_columns=False)


def same_rows(root: Path, *, by_columns: bool) -> None:
    """Builds `root`/safe, and the same folder with pickled weights. Raises AssertionError for other rows."""
    shutil.copytree(root / "safe", root / "pickled")
    pickle_weights(root / "pickled", by_columns=by_columns)
    assert not [*(root / "pickled").rglob("*.safetensors*")]
    checkpoints = [resolve(str(root / name)) for name in ("safe", "pickled")]
    assert checkpoints[0].revision != checkpoints[1].revision
    engines = [built(each, read_spec(each), root / f"engine-{i}").engine for i, each in enumerate(checkpoints)]
    batch = Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in IDS])
    rows = [engine.forward(batch) for engine in engines]
    assert np.isfinite(rows[0]).all()
    np.testing.assert_array_equal(rows[0], rows[1])
    for of_safe, of_pickled in zip(*(engine.forward_tokens(batch) for engine in engines), strict=True):
        np.testing.assert_array_equal(of_safe, of_pickled)
