"""Builds an engine folder for TensorRT-LLM from a checkpoint.

The build needs no GPU: TensorRT-LLM chooses its kernels when the engine starts on a GPU for the first time.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import quantization_of
from bei_core.engines.quality import Quality
from bei_core.engines.tensorrt_llm.limits import check_model
from bei_core.engines.torch import build
from bei_core.engines.torch.folder import facts_of
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)


def facts(settings: Settings) -> Mapping[str, object]:
    """Returns the part of an engine's address that needs no checkpoint.

    It is the same as for the torch engine, because both engines have the same files in their folders.
    """
    return build.facts(settings)


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
    planned = build.plan(checkpoint, spec, settings, "tensorrt_llm")

    def fill(folder: Path) -> Quality | None:
        quality = planned.fill(folder)
        log.info(
            "%s is built; at the first start on a GPU, TensorRT-LLM chooses its kernels (saved in .tuned/ in the "
            "engine folder if that is writable), and at every start it captures CUDA graphs",
            checkpoint.source,
        )
        return quality

    return dataclasses.replace(planned, fill=fill)
