"""Builds an engine folder for torch from a checkpoint. Needs neither a GPU nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import quantization_of
from bei_core.engines.torch.folder import DTYPES, PRECISIONS, facts_of, write_folder
from bei_core.errors import ConfigError, EngineUnavailableError
from bei_core.models.spec import ModelSpec

# Part of an engine's address. Increment it when the same checkpoint would give another folder.
VERSION = 2


def facts(settings: Settings) -> Mapping[str, object]:
    """The part of an engine's address that needs no checkpoint. There is one engine for each dtype."""
    return {"folder": VERSION, "dtype": settings.dtype}


def check(spec: ModelSpec, settings: Settings) -> None:
    """Raises UnsupportedModelError, ConfigError for a dtype that this engine does not have, EngineUnavailableError for
    a quantised engine.
    """
    if quantization_of(settings) is not None:
        raise EngineUnavailableError(
            f"the torch engine has no quantised weights (quantization_type {settings.quantization_type or 'fp8'}); use "
            "no_quant, or --engine tensorrt_llm for fp8"
        )
    if settings.dtype not in PRECISIONS:
        raise ConfigError(
            f"the torch engine does not compute in dtype {settings.dtype}; use one of {', '.join(PRECISIONS)}"
        )
    facts_of(spec)


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built. Raises as `check`."""
    check(spec, settings)
    model, precision = facts_of(spec), PRECISIONS[settings.dtype]
    fill = partial(write_folder, checkpoint=checkpoint, facts=model, dtype=DTYPES[precision])
    return Plan("torch", precision, {"folder": VERSION, "mask": model.mask}, fill)
