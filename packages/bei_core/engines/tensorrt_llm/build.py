"""Builds an engine folder for TensorRT-LLM from a checkpoint. No GPU is needed; the first start chooses the kernels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import Quantization, quantization_of
from bei_core.engines.quality import Bar, Quality, bar_of
from bei_core.engines.tensorrt_llm.limits import check_model
from bei_core.engines.torch.folder import DTYPES, PRECISIONS, copy_companions, facts_of, write_folder
from bei_core.errors import ConfigError, EngineUnavailableError, UnsupportedModelError
from bei_core.models.families import family_of
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)

# Part of an engine's address. Increment it when the same checkpoint would give another folder.
VERSION = 2


def facts(settings: Settings) -> Mapping[str, object]:
    """The part of an engine's address that needs no checkpoint. There is one engine for each dtype."""
    return {"folder": VERSION, "dtype": settings.dtype}


def check(spec: ModelSpec, settings: Settings) -> None:
    """Raises UnsupportedModelError, ConfigError for a dtype that this engine does not have."""
    quantization = quantization_of(settings)
    check_model(facts_of(spec), "float32" if quantization is None and settings.dtype == "float32" else "bfloat16")
    if quantization is not None and family_of(spec.architecture).has_own_code:
        raise _not_quantised(spec.architecture, quantization)
    if quantization is None and settings.dtype not in PRECISIONS:
        raise ConfigError(
            f"the TensorRT-LLM engine does not compute in dtype {settings.dtype}; use one of {', '.join(PRECISIONS)}, "
            "or for fp8 set quantization_type"
        )


def _not_quantised(model: str, quantization: Quantization) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"quantization_type {quantization.type}: {model} is published with code of its own, and modelopt quantises "
        "transformers' classes only; use no_quant"
    )


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built.

    Raises as `check`, and EngineUnavailableError for a quantised engine if modelopt is not installed. The plan's `fill`
    raises QualityError.
    """
    check(spec, settings)
    quantization = quantization_of(settings)
    if quantization is not None:
        return _quantized_plan(checkpoint, spec, quantization, bar_of(settings))
    model, precision = facts_of(spec), PRECISIONS[settings.dtype]

    def fill(folder: Path) -> None:
        write_folder(folder, checkpoint, model, DTYPES[precision])
        _log_first_start(checkpoint)

    return Plan("tensorrt_llm", precision, {"folder": VERSION, "mask": model.mask}, fill)


def _quantized_plan(checkpoint: Checkpoint, spec: ModelSpec, quantization: Quantization, bar: Bar) -> Plan:
    if family_of(spec.architecture).has_own_code_in(checkpoint.tensors()):
        raise _not_quantised(f"{checkpoint.source} ({spec.architecture})", quantization)
    missing = [package for package in ("torch", "transformers", "modelopt") if find_spec(package) is None]
    if missing:
        raise EngineUnavailableError(
            f"quantization_type {quantization.type} needs {' and '.join(missing)} where the engine is built: "
            "pip install nvidia-modelopt==0.47.0 'transformers>=4.57,<5.15' requests"
        )
    from bei_core.engines.tensorrt_llm import quantize

    scheme = quantize.Scheme.of(quantization, spec, bar)
    model = facts_of(spec, scheme.parts)

    def fill(folder: Path) -> Quality:
        quality = quantize.fill(folder, checkpoint, model, scheme)
        copy_companions(checkpoint, folder)
        _log_first_start(checkpoint)
        return quality

    artifact = {"folder": VERSION, "mask": model.mask, **scheme.address()}
    return Plan("tensorrt_llm", scheme.precision, artifact, fill, quantize.versions())


def _log_first_start(checkpoint: Checkpoint) -> None:
    log.info(
        "%s is built; at the first start on a GPU, TensorRT-LLM chooses its kernels (saved in .tuned/ in the engine "
        "folder if that is writable), and at every start it captures CUDA graphs",
        checkpoint.source,
    )
