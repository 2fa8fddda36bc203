"""Tests of the GPU engine without a GPU: our classes on a stand-in for TensorRT-LLM (shims/README.md), and modelopt.

`make test-gpu-path` runs them in an environment of their own. If the real tensorrt_llm is installed, it is used instead
of the stand-in, and tests that need the stand-in are skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SHIMS = Path(__file__).parent / "shims"
if importlib.util.find_spec("tensorrt_llm") is None:
    sys.path.insert(0, str(SHIMS))
IS_REAL = not hasattr(importlib.import_module("tensorrt_llm"), "IS_SHIM")

import pytest  # noqa: E402
import torch  # noqa: E402

from bei_core.checkpoint import Checkpoint  # noqa: E402
from bei_core.config.settings import Settings  # noqa: E402
from bei_core.engines.build import plan_build  # noqa: E402
from bei_core.engines.cache import publish_engine  # noqa: E402
from bei_core.engines.open import Opened, load  # noqa: E402
from bei_core.engines.tensorrt_llm import build, limits  # noqa: E402
from bei_core.engines.torch import build as torch_build  # noqa: E402
from bei_core.models.spec import ModelSpec  # noqa: E402
from tests.gpu_path.table import TABLE  # noqa: E402

torch.set_num_threads(1)

Builder = Callable[..., Opened]


BUILDERS = {"tensorrt_llm": build, "torch": torch_build}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """Builds a checkpoint's engine into a folder with the given settings, and loads it.

    Attention heads may be of any size: those of the golden checkpoints are smaller than TensorRT-LLM's kernels allow.
    """
    monkeypatch.setattr(limits, "HEAD_SIZES", range(1, 257))

    def make(checkpoint: Checkpoint, spec: ModelSpec, **settings: object) -> Opened:
        given = {"engine": "tensorrt_llm", **settings}
        folder = tmp_path / f"engine-{len(list(tmp_path.iterdir()))}"
        chosen = Settings.load(given, {"HOME": "/nonexistent"})
        publish_engine(folder, plan_build(BUILDERS[chosen.engine], checkpoint, spec, chosen)[1])
        return load(folder)

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("GPU path: our classes, on " + ("tensorrt_llm" if IS_REAL else "the stand-in, on a CPU"))
    for line in TABLE.lines():
        terminalreporter.write_line(line)
