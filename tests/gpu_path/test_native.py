"""Tensors under the names of transformers' own classes, on the torch engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from bei_core.tasks import Rows
from tests.golden.cases import GOLDEN
from tests.golden.native import CASES, with_native_names
from tests.golden.padding import tokens
from tests.gpu_path.conftest import Builder


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_with_native_names_is_read(name: str, built: Builder, tmp_path: Path) -> None:
    def rows(checkpoint: Checkpoint) -> Rows:
        engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
        return engine.forward(Batch.pack([tokens(np.arange(3, 180, 15, dtype=np.int32))]))

    native = rows(with_native_names(name, tmp_path / "model"))
    np.testing.assert_allclose(native, rows(resolve(str(GOLDEN / name))), rtol=1e-4, atol=1e-5)
