"""Tensors under the names of transformers' own classes, on the torch engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.engines.batch import Batch
from bei_core.errors import UnsupportedModelError
from bei_core.models.spec import read_spec
from bei_core.tasks import Rows
from tests.golden.cases import GOLDEN
from tests.golden.native import CASES, OVERRULED, with_native_names
from tests.golden.padding import tokens
from tests.golden.tied import changed
from tests.gpu_path.conftest import Builder


def rows(built: Builder, checkpoint: Checkpoint) -> Rows:
    engine = built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32").engine
    return engine.forward(Batch.pack([tokens(np.arange(3, 180, 15, dtype=np.int32))]))


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_with_native_names_is_read(name: str, built: Builder, tmp_path: Path) -> None:
    native = rows(built, with_native_names(name, tmp_path / "model"))
    np.testing.assert_allclose(native, rows(built, resolve(str(GOLDEN / name))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "config"), OVERRULED)
def test_the_tensors_say_which_layers_there_are(
    name: str, config: dict[str, Any], built: Builder, tmp_path: Path
) -> None:
    overruled = changed(name, tmp_path / "model", **config)
    np.testing.assert_array_equal(rows(built, overruled), rows(built, resolve(str(GOLDEN / name))))


def test_experts_that_config_json_does_not_name_are_refused(built: Builder, tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "nomic-v2-moe", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts": None}))
    checkpoint = resolve(str(folder))
    with pytest.raises(UnsupportedModelError, match=r"^config\.json has no `num_experts`, but the checkpoint"):
        built(checkpoint, read_spec(checkpoint), engine="torch", dtype="float32")
