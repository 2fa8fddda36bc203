"""Builds an engine folder for TensorRT-LLM from a checkpoint. No GPU is needed; the first start chooses the kernels."""

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
    """The part of an engine's address that needs no checkpoint: the torch engine's, whose folders are the same."""
    return build.facts(settings)


def check(spec: ModelSpec, settings: Settings) -> None:
    """Raises as the torch engine, and UnsupportedModelError for what TensorRT-LLM does not run."""
    is_f32 = quantization_of(settings) is None and settings.dtype == "float32"
    check_model(facts_of(spec), "float32" if is_f32 else "bfloat16")
    build.check(spec, settings, "tensorrt_llm")


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built. Raises as `check`, and as the torch engine's `plan`."""
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
