"""The output and exit codes of `bei embed`, `bei bench` and `bei doctor`."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bei_core.bench import Options
from bei_core.cli import main as cli
from bei_core.config.settings import Settings
from bei_core.engines import registry
from bei_core.errors import BeiError, EngineUnavailableError, WrongTaskError
from bei_core.models.modules import Classifier, Module, Splade
from tests.fakes import WIDTH
from tests.golden.cases import GOLDEN
from tests.unit.cli.fake_model import opens

FOLDER = GOLDEN / "bert-cls-normalize"


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), env={"BEI_MODELS": "", "MODEL_ID": ""})


def test_embed_prints_a_list_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch)
    result = run("embed", "--model-id", "owner/name", "one", "two")
    assert result.exit_code == 0, result.output
    rows = np.array([json.loads(line) for line in result.output.splitlines() if line.startswith("[")])
    assert rows.shape == (2, WIDTH)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Classifier(("LABEL_0",), "sigmoid"), "reranker"),
        (Classifier(("no", "yes"), "softmax"), "classifier"),
        (Splade(), "sparse"),
    ],
)
def test_embed_refuses_a_model_that_does_not_embed(monkeypatch: pytest.MonkeyPatch, module: Module, kind: str) -> None:
    opens(monkeypatch, module)
    result = run("embed", "--model-id", "owner/name", "one")
    assert "[" not in result.output
    assert isinstance(result.exception, WrongTaskError)
    assert str(result.exception) == f"owner/name is a model of kind {kind}; this needs one of kind embedding"


@pytest.mark.parametrize(("errors", "said"), [({}, None), ({"429": 3, "timeout": 1}, "4 requests failed")])
def test_bench_fails_if_requests_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, errors: dict[str, int], said: str | None
) -> None:
    class Made:
        """The three attributes of a report that the command uses."""

        def __init__(self) -> None:
            self.errors = errors

        def __str__(self) -> str:
            return "the report"

        def write(self, path: Path) -> None:
            path.write_text("{}")

    asked: list[Options] = []

    def measure(options: Options) -> Made:
        asked.append(options)
        return Made()

    monkeypatch.setattr("bei_core.cli.bench.run", measure)
    result = run("bench", "--clients", "2", "--rate", "1.5", "--workload", "tiny", "--output", str(tmp_path / "r.json"))
    assert asked == [Options(clients=2, rate=1.5, workload="tiny")]
    assert "the report" in result.output
    assert (tmp_path / "r.json").exists(), "it is written in either case"
    if said is None:
        assert result.exit_code == 0
    else:
        assert isinstance(result.exception, BeiError)
        assert str(result.exception) == f"{said} (429: 3, timeout: 1)"


def facts(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return {line[:24].strip(): line[25:] for line in result.output.splitlines()}


def test_doctor_says_what_each_engine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bei_core.cli.doctor.find_gpu", lambda: None)
    monkeypatch.setattr(registry.EngineKind, "is_installed", lambda kind: kind.name == "openvino")
    found = facts(run("doctor"))
    assert found["engine openvino"] == "ready"
    assert found["engine tensorrt_llm"].startswith("cannot run: no NVIDIA GPU is found; the tensorrt_llm engine needs")
    assert "pip install tensorrt-llm" in found["engine tensorrt_llm"]
    assert found["engine torch"].startswith("cannot run: the torch engine needs the package torch: pip install")
    assert found["gpu"] == "none"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 amx_int8 avx512_bf16", "avx2, avx512_bf16, amx_int8"), ("fpu sse2", "unknown"), ("", "unknown")],
)
def test_doctor_names_the_instructions_that_decide_the_speed(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    monkeypatch.setattr("bei_core.engines.openvino.processor.cpu_flags", lambda: frozenset(flags.split()))
    assert facts(run("doctor"))["instructions"] == expected


def test_doctor_says_that_torch_runs_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("bei_core.cli.doctor.find_gpu", "bei_core.engines.registry.find_gpu"):
        monkeypatch.setattr(place, lambda: None)
    monkeypatch.setattr(registry.EngineKind, "is_installed", lambda kind: True)
    found = facts(run("doctor"))
    assert found["engine torch"] == "ready on the CPU, but auto does not choose it: no NVIDIA GPU is found"
    assert found["engine tensorrt_llm"] == "cannot run: no NVIDIA GPU is found"
    assert found["engine of auto"] == "openvino"


def test_doctor_knows_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = registry.Gpu("Tesla T4", (7, 5))
    for place in ("bei_core.cli.doctor.find_gpu", "bei_core.engines.registry.find_gpu"):
        monkeypatch.setattr(place, lambda: old)
    monkeypatch.setattr(registry.EngineKind, "is_installed", lambda kind: True)
    found = facts(run("doctor"))
    assert found["engine tensorrt_llm"] == (
        "cannot run: TensorRT-LLM supports compute capability 8.0 (Ampere) and newer"
    )
    assert found["engine torch"] == (
        "ready, but auto does not choose it: torch supports compute capability 8.0 (Ampere) and newer"
    )
    assert found["gpu"] == "Tesla T4, compute capability 7.5"


def test_doctor_reports_what_is_broken_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise ImportError("libtbb.so.12:\ncannot open shared object file")

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    def refused(*_: object) -> Settings:
        raise EngineUnavailableError("there is no home directory")

    monkeypatch.setattr("bei_core.engines.openvino.engine.precision_for", broken)
    monkeypatch.setattr("bei_core.cli.doctor.version", missing)
    monkeypatch.setattr(Settings, "load", refused)
    found = facts(run("doctor"))
    assert found["engine openvino"] == "cannot run: libtbb.so.12: cannot open shared object file"
    assert found["precision of dtype auto"] == "unknown: ImportError: libtbb.so.12: cannot open shared object file"
    assert found["bei"].startswith("unknown: PackageNotFoundError")
    assert found["cache"] == "unknown: there is no home directory"
