"""Parts of the GPU self-check. The whole is `scripts/gpu_selfcheck.py --shim --models tiny-bert`, some minutes."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
import torch

from bei_core.errors import EngineUnavailableError
from bei_core.models.modules import Pooling
from bei_core.models.pooling import PoolingMode
from bei_core.models.spec import ModelSpec
from scripts import gpu_selfcheck
from scripts.gpu import checks, speed, units
from scripts.gpu.report import BEGINS, PARITY, Findings, Result
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
    given = spec(architecture, config)
    assert (2 * speed.num_weights(given) + speed.attention_flops(given, length)) / 1e6 == pytest.approx(mflop, rel=2e-3)


H100 = speed.Card(flops={"bf16": 989e12, "fp8": 1979e12}, bandwidth=3.35e12)


@pytest.mark.parametrize(
    ("precision", "lengths", "milliseconds"),
    [
        ("bf16", [32], 0.18),  # reading the weights takes longer than computing
        ("fp8", [32], 0.09),
        ("bf16", [512], 0.34),
        ("bf16", [512, 32], 0.34 + 32 * 607 / 989e6 * 1e3),
        ("fp8", [512], 0.18),
    ],
)
def test_the_roofline_is_the_longer_of_computing_and_reading_the_weights(
    precision: str, lengths: list[int], milliseconds: float
) -> None:
    """By the published peaks of an H100."""
    seconds = speed.roofline(spec("BertModel", BERT_LARGE), lengths, precision, H100)
    assert seconds * 1000 == pytest.approx(milliseconds, rel=0.03)


@pytest.mark.skipif(IS_REAL, reason="it is the stand-in that has to be asked for by name")
def test_the_stand_in_is_never_taken_for_a_gpu() -> None:
    with pytest.raises(SystemExit, match="is the stand-in"):
        gpu_selfcheck.find_gpu(shim=False)
    assert gpu_selfcheck.find_gpu(shim=True) == "no GPU"


def test_a_report_without_a_gpu_starts_with_a_warning(tmp_path: Path) -> None:
    findings = Findings(card="no GPU", has_gpu=False, versions={"torch": "2"})
    findings.results += islice(checks.parity("bert", tmp_path, "tensorrt_llm"), 2)
    findings.results.append(Result(section=PARITY, what="a model", skipped="no kernel"))
    findings.results.append(Result(section="Over HTTP", what="vLLM, tiny", figures={"requests/s": "7"}))
    findings.write(tmp_path / "out", "report")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.splitlines()[2].startswith("**This run used no GPU")
    assert "2 of 2 checks passed; 1 checks or units did not run." in text
    assert "| a model |  | not run: no kernel |\n" in text
    assert "| up to 1400 client embeddings per second | Over HTTP, requests/s |\n" in text
    assert "|  | requests/s |\n" in text
    assert "| vLLM, tiny | 7 |\n" in text
    assert "|  | lowest cosine | check |\n" in text
    assert json.loads((tmp_path / "out" / "report.json").read_text())["has_gpu"] is False


def test_the_fused_attention_of_every_required_family_is_checked_and_what_is_skipped_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_parity", MagicMock(return_value={}))
    found = [result for layout in ("bert", "decoder") for result in checks.parity(layout, tmp_path, "tensorrt_llm")]
    in_bf16 = {result.what.split()[0]: result for result in found if "bfloat16" in result.what}
    names = ("Bert", "Roberta", "XLMRoberta", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2")
    for architecture in (f"{name}{kind}" for name in names for kind in ("Model", "ForSequenceClassification")):
        assert in_bf16[architecture].passed is True
    skipped = in_bf16["EuroBertModel"]
    assert (skipped.passed, skipped.skipped.split(",")[0]) == (None, "EuroBertModel has attention heads of size 12")
    refused = {result.what.split()[0] for result in found if "float32" in result.what and not result.passed}
    assert refused == {  # their attention adds biases of scores
        *("MPNetModel", "MPNetForSequenceClassification", "JinaBertModel", "JinaBertForSequenceClassification"),
    }


def test_without_tensorrt_llm_the_script_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_selfcheck, "check_version", MagicMock(side_effect=EngineUnavailableError("not installed")))
    with pytest.raises(SystemExit, match=r"^not installed$"):
        gpu_selfcheck.find_gpu(shim=False)


def test_the_torch_engine_is_checked_without_tensorrt_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        gpu_selfcheck.find_gpu(shim=False, engine="torch")
    found = list(islice(checks.parity("t5", tmp_path, "torch"), 2))
    assert [check.passed for check in found] == [True, True]
    assert "lowest cosine" in found[0].figures


def test_a_failed_comparison_is_named_and_the_others_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "compare", MagicMock(side_effect=[AssertionError("too far"), MagicMock(cosine=1.0)] * 2)
    )
    found = list(islice(checks.parity("t5", tmp_path, "torch"), 2))
    assert [check.passed for check in found] == [False, False]
    assert found[0].figures == {"error": "AssertionError: too far"}


def results_of(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float = 60.0) -> list[Result]:
    """The results of a unit whose process runs `code`."""
    monkeypatch.setattr(sys, "argv", ["-c", code])
    return list(gpu_selfcheck.run_unit("alone/m/bf16", limit_s, tmp_path))


def test_results_before_a_process_dies_are_kept_and_its_end_is_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kernel that is missing ends the process."""
    row = msgspec.json.encode(Result(section="s", what="w")).decode()
    code = f"import os, sys; print('{row}', flush=True); print('no kernel', file=sys.stderr, flush=True); os.abort()"
    first, last = results_of(code, tmp_path, monkeypatch)
    assert first.what == "w"
    assert (last.passed, last.figures["result"]) == (False, "status -6 no kernel")


def test_a_check_that_ends_its_process_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three aborts, as TensorRT-LLM does for heads that it has no kernel for."""
    row = msgspec.json.encode(Result(section=PARITY, what="w", passed=True)).decode()
    code = f"""
import os, sys
for number in range(int(sys.argv[-1]), 3):
    print("{BEGINS}check", number, flush=True)
    if number == 1:
        print("no kernel", file=sys.stderr, flush=True)
        os.abort()
    print('{row}'.replace('"w"', f'"{{number}}"'), flush=True)
"""
    found = results_of(code, tmp_path, monkeypatch)
    assert [(result.what, result.passed) for result in found] == [
        ("0", True),
        ("check 1", False),
        ("2", True),
        ("alone/m/bf16", None),
    ]
    assert found[1].figures == {"error": "status -6 no kernel"}


def test_a_unit_that_takes_too_long_is_ended_and_one_without_time_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (last,) = results_of("import time; time.sleep(600)", tmp_path, monkeypatch, limit_s=0.2)
    assert (last.passed, last.skipped) == (None, "not finished, because no time was left")
    monkeypatch.setattr(gpu_selfcheck, "UNIT_S", 0.2)
    (last,) = results_of("import time; time.sleep(600)", tmp_path, monkeypatch, limit_s=0.2)
    assert (last.passed, last.figures["result"]) == (False, "status -9")
    (last,) = results_of("", tmp_path, monkeypatch, limit_s=-1.0)
    assert (last.passed, last.skipped) == (None, "no time was left")


def test_a_library_that_is_not_installed_is_no_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (last,) = results_of("import a_package_that_nobody_has", tmp_path, monkeypatch)
    assert (last.passed, last.skipped) == (None, "not installed")


def test_a_model_with_random_weights_is_built_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers here; the whole script is `scripts/gpu_selfcheck.py --shim --models tiny-bert`, some minutes."""
    arguments = ["", "--engine", "torch", "--shim", "--quick", "--models", "tiny-mistral", "--peer", "mine=http://x"]
    monkeypatch.setattr(sys, "argv", arguments)
    options = gpu_selfcheck.read_options()
    assert units.names(options)[:2] == ["card", "alone/tiny-mistral/bf16"]
    assert "peer/mine" in units.names(options)
    _, throughput = units.run("alone/tiny-mistral/bf16", options, tmp_path)  # each unit runs without the others
    assert throughput.figures["512 tokens, of roofline"] == ""
    (card,) = units.run("card", options, tmp_path)
    assert "bf16 matmul, TFLOP/s" in card.figures
    latency, throughput = units.run("alone/tiny-mistral/bf16", options, tmp_path)
    assert list(latency.figures)[:2] == ["1 short, p50 / p99 ms", "1 short, of roofline"]
    assert throughput.figures["512 tokens, of roofline"].endswith("%")


def test_tokenizing_is_not_measured_in_other_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], speed._seconds

    def seconds(*args: Any, **options: Any) -> float:
        calls.append("measured")
        try:
            return run(*args, **options)
        finally:
            calls.append("end")

    monkeypatch.setattr(speed, "_seconds", seconds)
    tokens = {"input_ids": torch.ones(2, 512), "attention_mask": torch.ones(2, 512)}

    def tokenize(given: list[str]) -> speed.Features:
        calls.append("tokenized")
        return tokens

    found = speed._library("a library", tokenize, lambda features: features["input_ids"], rounds=1)
    assert list(found.figures) == ["512 tokens, tokens/s", "mixed lengths, tokens/s"]
    assert calls.count("measured") == 2
    assert all(calls[at + 1] == "end" for at, call in enumerate(calls) if call == "measured")
