"""Tensors under the names of transformers' own classes give what they give under the published names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from tests.golden.cases import GOLDEN
from tests.golden.native import CASES, OVERRULED, with_native_names
from tests.golden.test_tied import rows
from tests.golden.tied import changed


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_with_native_names_is_read(name: str, tmp_path: Path) -> None:
    checkpoint = with_native_names(name, tmp_path / "native")
    assert "layers.0.self_attn.k_proj.weight" in " ".join(checkpoint.tensors())
    expected = rows(resolve(str(GOLDEN / name)), name)
    np.testing.assert_allclose(rows(checkpoint, name), expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_the_authors_code_is_read_under_the_class_of_transformers(tmp_path: Path) -> None:
    """transformers takes the prefix of NewModel off, so its class has the published tensors, also of the head."""
    published = "gte-multilingual-rerank"
    name = "GteForSequenceClassification"
    renamed = changed(published, tmp_path / "gte", without="auto_map", architectures=[name], model_type="gte")
    np.testing.assert_array_equal(rows(renamed, published), rows(resolve(str(GOLDEN / published)), published))


@pytest.mark.parametrize(("name", "config"), OVERRULED)
def test_the_tensors_say_which_layers_there_are(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    overruled = changed(name, tmp_path / "model", **config)
    np.testing.assert_array_equal(rows(overruled, name), rows(resolve(str(GOLDEN / name)), name))
