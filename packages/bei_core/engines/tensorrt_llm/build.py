"""Builds an engine folder for TensorRT-LLM from a checkpoint.

The build needs no GPU: TensorRT-LLM chooses its kernels when the engine starts on a GPU for the first time.
"""

from __future__ import annotations

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import quantization_of
from bei_core.engines.tensorrt_llm.limits import check_model
from bei_core.engines.torch import build
from bei_core.engines.torch.folder import facts_of
from bei_core.models.spec import ModelSpec

facts = build.facts  # as both engines have the same files in their folders, their addresses have the same facts


def check(spec: ModelSpec, settings: Settings) -> None:
    """Checks that the engine can be built for this model and these settings.

    Raises UnsupportedModelError for a model that TensorRT-LLM does not run, and the errors of the torch engine's
    `check`.
    """
    is_f32 = quantization_of(settings) is None and settings.dtype == "float32"
    check_model(facts_of(spec), "float32" if is_f32 else "bfloat16")
    build.check(spec, settings, "tensorrt_llm")


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """Returns the plan of the build for a checkpoint. Raises the errors of `check` and of the torch engine's `plan`."""
    check(spec, settings)
    return build.plan(checkpoint, spec, settings, "tensorrt_llm")
