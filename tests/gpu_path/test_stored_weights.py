"""Dtypes of weights in checkpoints: which ones are read, and which are refused before they would give wrong vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.errors import CheckpointError
from bei_core.models.spec import read_spec
from bei_core.tasks import Rows
from tests.golden.cases import GROUP_CASES
from tests.golden.tied import changed
from tests.gpu_path.conftest import Builder
from tests.gpu_path.test_native import rows

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
QWEN = next(case for case in GROUP_CASES if case.architecture == "Qwen2Model")
QUERY = "model.layers.0.self_attn.q_proj"


def stored(folder: Path, change: Change) -> Checkpoint:
    """A Qwen2 with changed tensors."""
    path = changed(QWEN.name, folder).folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return resolve(str(folder))


def in_fp8(**scales: torch.Tensor) -> Change:
    """The weight of the first queries is in fp8, with scales under these names."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = {f"{QUERY}.weight": (tensors[f"{QUERY}.weight"].float() / 0.01).to(torch.float8_e4m3fn)}
        return tensors | weight | {f"{QUERY}.{name}": scale for name, scale in scales.items()}

    return change


def test_weights_in_f64_are_read(built: Builder, tmp_path: Path) -> None:
    wide = stored(tmp_path / "wide", lambda tensors: {name: x.double() for name, x in tensors.items()})
    expected: Rows = rows(built, resolve(str(QWEN.folder)))
    np.testing.assert_allclose(rows(built, wide), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quantization", ["no_quant", "fp8"])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (in_fp8(), "F8_E4M3"),
        (in_fp8(weight_scale_inv=torch.full((1, 1), 0.01)), "F8_E4M3"),  # of DeepSeek, with a scale for each block
        (in_fp8(weight_scale=torch.full((64, 1), 0.01)), "F8_E4M3"),  # with a scale for each row
        (lambda tensors: tensors | {f"{QUERY}.weight": torch.ones(32, 32, dtype=torch.int8)}, "I8"),  # of bitsandbytes
    ],
)
def test_quantised_weights_without_one_scale_are_refused_when_an_engine_is_built(
    change: Change, found: str, quantization: str, built: Builder, tmp_path: Path
) -> None:
    checkpoint = stored(tmp_path / "model", change)
    with pytest.raises(CheckpointError, match=rf"^{QUERY}\.weight is {found}; of quantised weights"):
        built(checkpoint, read_spec(checkpoint), engine="torch", quantization_type=quantization)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (in_fp8(weight_scale=torch.tensor(0.01)), "k_proj.weight_scale"),
        (lambda tensors: {name: x for name, x in tensors.items() if "k_proj.bias" not in name}, "k_proj.bias"),
    ],
)
def test_a_tensor_that_only_some_of_the_joined_layers_have_is_missed_by_its_name(
    change: Change, missing: str, built: Builder, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=rf"^the checkpoint has no tensor .*{missing}$"):
        rows(built, stored(tmp_path / "model", change))
