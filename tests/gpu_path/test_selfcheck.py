"""Parts of the GPU self-check. The whole self-check is `scripts/gpu_selfcheck.py --shim`, which takes some minutes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from bei_core.models.modules import Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec
from scripts import gpu_selfcheck
from scripts.gpu import checks, speed
from scripts.gpu.report import Findings
from tests.golden.cases import GOLDEN
from tests.gpu_path.conftest import IS_REAL

BERT_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
MISTRAL_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
}


def spec(architecture: str, config: dict[str, Any]) -> ModelSpec:
    modules = (Pooling(modes=(PoolingMode.MEAN,)),)
    return ModelSpec(architecture=architecture, config=config, modules=modules, normalize=True, max_seq_len=4096)


@pytest.mark.parametrize(
    ("architecture", "config", "length", "mflop"),
    [
        ("BertModel", BERT_LARGE, 32, 607),
        ("BertModel", BERT_LARGE, 512, 654),
        ("MistralModel", MISTRAL_7B, 512, 14_093),
        ("MistralModel", MISTRAL_7B, 4096, 15_032),
    ],
)
def test_flops_per_token_match_published_model_sizes(
    architecture: str, config: dict[str, Any], length: int, mflop: float
) -> None:
    """Twice the weights of linear layers, plus for attention 4 * length * H * layers, or half of it if causal."""
    assert speed.flops_per_token(spec(architecture, config), length) / 1e6 == pytest.approx(mflop, rel=2e-3)


def test_the_peak_is_that_of_the_named_gpu() -> None:
    assert speed.peak_of("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert speed.peak_of("NVIDIA H100 PCIe", "fp8") == 1513e12
    assert speed.peak_of("NVIDIA L40S", "bf16") == 362e12
    assert speed.peak_of("a future GPU", "bf16") is None


@pytest.mark.skipif(IS_REAL, reason="it is the stand-in that has to be asked for by name")
def test_the_stand_in_is_never_taken_for_a_gpu() -> None:
    with pytest.raises(SystemExit, match="is the stand-in"):
        gpu_selfcheck.find_gpu(shim=False)
    assert gpu_selfcheck.find_gpu(shim=True) == "no GPU"


@pytest.mark.skipif(IS_REAL, reason="what a run on the stand-in writes")
def test_a_report_of_the_stand_in_starts_with_a_warning(tmp_path: Path) -> None:
    findings = Findings(True, "no GPU", {"torch": "2"}, "tiny")
    findings.checks += islice(checks.parity(tmp_path, False), 2)
    opened = checks.engine(str(GOLDEN / "bert-cls-normalize"), tmp_path / "tiny", dtype="float32")
    findings.alone["bf16"] = speed.alone(opened.engine, opened.spec, "no GPU", rounds=1)
    findings.served.append(speed.Served("vLLM", "long", None, "not installed"))
    findings.write(tmp_path / "out", "stand-in")
    text = (tmp_path / "out" / "stand-in.md").read_text()
    assert text.splitlines()[2].startswith("**This run used a stand-in")
    assert "2 of 2 checks passed" in text
    assert "| vLLM | long | not installed |" in text
    assert json.loads((tmp_path / "out" / "stand-in.json").read_text())["is_stand_in"] is True


def test_a_failed_check_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    failed = checks.fp8("/nowhere", tmp_path / "fp8")
    assert not failed.passed
    assert "/nowhere is not a folder" in failed.figure


def test_the_torch_engine_is_checked_without_tensorrt_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        gpu_selfcheck.find_gpu(shim=False, engine="torch")
    found = list(islice(checks.parity(tmp_path, False, "torch"), 2))
    assert [check.passed for check in found] == [True, True]
    assert "cosine" in found[0].figure
