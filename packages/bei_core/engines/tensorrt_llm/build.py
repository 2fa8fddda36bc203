"""Builds an engine folder for TensorRT-LLM from a checkpoint. No GPU is needed; the first start chooses the kernels."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import Quantization, quantization_of
from bei_core.engines.quality import Bar, Quality, bar_of
from bei_core.engines.tensorrt_llm.artifact import WEIGHTS, facts_of, write_config, write_weights
from bei_core.errors import ConfigError, EngineUnavailableError
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)

# Part of an engine's address. Increment it when the same checkpoint would give another folder.
VERSION = 1

_PRECISIONS = {"auto": "bf16", "bfloat16": "bf16", "float16": "f16", "float32": "f32"}
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "fp8": "bfloat16", "fp4": "bfloat16"}

# Files that other tools read in such a folder: trtllm-serve, transformers, sentence-transformers.
_COMPANION_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
)


def facts(settings: Settings) -> Mapping[str, object]:
    """The part of an engine's address that needs no checkpoint. There is one engine for each dtype."""
    return {"folder": VERSION, "dtype": settings.dtype}


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built.

    Raises UnsupportedModelError, ConfigError for a dtype that this engine does not have, EngineUnavailableError for a
    quantised engine if modelopt is not installed. The plan's `fill` raises QualityError.
    """
    quantization = quantization_of(settings)
    if quantization is not None:
        return _quantized_plan(checkpoint, spec, quantization, bar_of(settings))
    if settings.dtype not in _PRECISIONS:
        raise ConfigError(
            f"the TensorRT-LLM engine does not compute in dtype {settings.dtype}; use one of {', '.join(_PRECISIONS)}, "
            "or for fp8 set quantization_type"
        )
    model, precision = facts_of(spec), _PRECISIONS[settings.dtype]

    def fill(folder: Path) -> None:
        write_config(model, DTYPES[precision], folder)
        write_weights(checkpoint.tensors(), checkpoint, model, DTYPES[precision], folder / WEIGHTS)
        _finish(checkpoint, spec, folder)

    return Plan("tensorrt_llm", precision, {"folder": VERSION, "mask": model.mask}, fill)


def _quantized_plan(checkpoint: Checkpoint, spec: ModelSpec, quantization: Quantization, bar: Bar) -> Plan:
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
        _finish(checkpoint, spec, folder)
        return quality

    artifact = {"folder": VERSION, "mask": model.mask, **scheme.address()}
    return Plan("tensorrt_llm", scheme.precision, artifact, fill, quantize.versions())


def _finish(checkpoint: Checkpoint, spec: ModelSpec, folder: Path) -> None:
    """Copies the files that other tools read, and logs what happens at the first start on a GPU."""
    names = [path.name for pattern in _COMPANION_FILES for path in checkpoint.folder.glob(pattern)]
    names += [f"{entry['path']}/config.json" for entry in _modules(checkpoint) if entry.get("path")]
    for name in names:
        if (checkpoint.folder / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)
    log.info(
        "%s is built; at the first start on a GPU, TensorRT-LLM chooses its kernels (saved in .tuned/ in the engine "
        "folder if that is writable), and at every start it captures CUDA graphs",
        checkpoint.source,
    )


def _modules(checkpoint: Checkpoint) -> list[Mapping[str, str]]:
    return list(checkpoint.read_json("modules.json", required=False) or ())
