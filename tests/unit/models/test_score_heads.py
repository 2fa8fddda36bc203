"""Classes whose head gives scores that BEI does not compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from bei_core.errors import UnsupportedModelError
from tests.unit.models.test_spec import CONFIG, modules, pooled, spec_of


@pytest.mark.parametrize(
    "name",
    ["Qwen2ForRewardModel", "LlamaForRewardModelWithGating", "BertForMultiLabelClassification", "BertForRanking"],
)
def test_a_class_with_another_head_of_scores_is_not_served_as_an_embedding_model(name: str, tmp_path: Path) -> None:
    config = {**CONFIG, "architectures": [name], "num_attention_heads": 2, "intermediate_size": 8}
    with pytest.raises(UnsupportedModelError, match=f"{name} is not supported: by its name it gives scores"):
        spec_of(tmp_path / "alone", {"config.json": config})
    asked = spec_of(tmp_path / "asked", {"config.json": config}, pooling="cls")  # the setting asks for vectors
    assert asked.modules == (pooled("cls"),)
    chain = {"config.json": config, **modules("Pooling"), "1_Pooling/config.json": {"pooling_mode": "mean"}}
    assert spec_of(tmp_path / "chain", chain).modules == (pooled("mean"),)
