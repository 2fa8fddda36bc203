"""Builds an engine folder from a checkpoint, for torch or TensorRT-LLM.

A build needs no GPU. It needs the package torch only for fp8.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import quantization_of, read_samples
from bei_core.engines.quality import bar_of
from bei_core.engines.torch.folder import PRECISIONS, facts_of, write_folder
from bei_core.errors import ConfigError, EngineUnavailableError
from bei_core.models.spec import ModelSpec

# Part of an engine's address. Increment it when the same checkpoint would give another folder or another spec.
VERSION = 11


def facts(settings: Settings) -> Mapping[str, object]:
    """Returns the part of an engine's address that needs no checkpoint. Each dtype gives another engine."""
    return {"folder": VERSION, "dtype": settings.dtype}


def check(spec: ModelSpec, settings: Settings, engine: str = "torch") -> None:
    """Checks that an engine can be built for this model and these settings.

    Raises UnsupportedModelError for a model that the model classes do not support, ConfigError for a dtype that the
    engine does not support, and EngineUnavailableError for a quantisation other than fp8.
    """
    facts_of(spec)
    quantization = quantization_of(settings)
    if quantization is not None and not quantization.type.startswith("fp8"):
        raise EngineUnavailableError(f"engines for GPUs are not built in {quantization.type}; use fp8")
    if quantization is None and settings.dtype not in PRECISIONS:
        raise ConfigError(
            f"the {engine} engine does not compute in dtype {settings.dtype}; use one of {', '.join(PRECISIONS)}, "
            "or for fp8 set quantization_type"
        )


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings, engine: str = "torch") -> Plan:
    """Returns the plan of the build for a checkpoint.

    Raises the errors of `check`, and EngineUnavailableError for a quantised engine if torch is not installed. The
    function `fill` of a quantised plan raises QualityError if the quality is too low.
    """
    check(spec, settings, engine)
    quantization = quantization_of(settings)
    if quantization is None:
        model, precision = facts_of(spec), PRECISIONS[settings.dtype]
        write = partial(write_folder, checkpoint=checkpoint, facts=model, precision=precision)
        return Plan(engine, precision, {"folder": VERSION, "mask": model.mask}, write)
    if find_spec("torch") is None:
        raise EngineUnavailableError(
            f"quantization_type {quantization.type} needs torch for the build: pip install 'bei-core[torch]'"
        )
    from bei_core.engines.torch import quantize

    parts = ("mlp",) if quantization.mlp_only else ("attention", "mlp")  # without KV cache, fp8_kv is fp8
    calibration, model = quantization.calibration, facts_of(spec, parts)
    scheme = quantize.Scheme(calibration, read_samples(calibration, spec), bar_of(settings))
    texts = msgspec.structs.asdict(calibration) | {"dataset": scheme.samples.digest}
    artifact = {"folder": VERSION, "mask": model.mask, "quantized": parts, "calibration": texts}
    fill = partial(quantize.fill, checkpoint=checkpoint, facts=model, scheme=scheme)
    return Plan(engine, "fp8", artifact, fill, quantize.built_with(model))
