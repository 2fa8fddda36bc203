"""A checkpoint to an engine folder for TensorRT-LLM. None of it needs a GPU; what does is done at the first start."""

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

# Part of an engine's address: raise it when the same checkpoint would give another folder.
VERSION = 1

_PRECISIONS = {"auto": "bf16", "bfloat16": "bf16", "float16": "f16", "float32": "f32"}
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "fp8": "bfloat16", "fp4": "bfloat16"}

# What others read of a folder like this: trtllm-serve, transformers, sentence-transformers.
_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
)


def facts(settings: Settings) -> Mapping[str, object]:
    """What chooses among a model's engines: weights are stored in the dtype that they are computed in."""
    return {"folder": VERSION, "dtype": settings.dtype}


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built.

    Raises UnsupportedModelError, ConfigError for a dtype that is not there, EngineUnavailableError where a quantised
    engine is asked for and modelopt is not installed, QualityError where one is too far from what it was.
    """
    how = quantization_of(settings)
    if how is not None:
        return _quantized_plan(checkpoint, spec, how, bar_of(settings))
    if settings.dtype not in _PRECISIONS:
        raise ConfigError(
            f"dtype {settings.dtype} is not one of the TensorRT-LLM engine's ({', '.join(_PRECISIONS)}); for fp8 set "
            "quantization_type"
        )
    model, precision = facts_of(spec), _PRECISIONS[settings.dtype]

    def fill(folder: Path) -> None:
        write_config(model, DTYPES[precision], folder)
        write_weights(checkpoint.tensors(), checkpoint, model, DTYPES[precision], folder / WEIGHTS)
        _finish(checkpoint, spec, folder)

    return Plan("tensorrt_llm", precision, {"folder": VERSION, "mask": model.mask}, fill)


def _quantized_plan(checkpoint: Checkpoint, spec: ModelSpec, how: Quantization, bar: Bar) -> Plan:
    missing = [package for package in ("torch", "transformers", "modelopt") if find_spec(package) is None]
    if missing:
        raise EngineUnavailableError(
            f"quantization_type {how.type} needs {' and '.join(missing)} where the engine is built: "
            "pip install nvidia-modelopt==0.47.0 'transformers>=4.57,<5.15' requests"
        )
    from bei_core.engines.tensorrt_llm import quantize

    recipe = quantize.Recipe.of(how, spec, bar)
    model = facts_of(spec, recipe.parts)

    def fill(folder: Path) -> Quality:
        quality = quantize.fill(folder, checkpoint, model, recipe)
        _finish(checkpoint, spec, folder)
        return quality

    artifact = {"folder": VERSION, "mask": model.mask, **recipe.identity()}
    return Plan("tensorrt_llm", recipe.precision, artifact, fill, quantize.versions())


def _finish(checkpoint: Checkpoint, spec: ModelSpec, folder: Path) -> None:
    """Copies what others read of the folder, and says what is left for the machine with the card."""
    names = [path.name for pattern in _COMPANIONS for path in checkpoint.folder.glob(pattern)]
    names += [f"{entry['path']}/config.json" for entry in _modules(checkpoint) if entry.get("path")]
    for name in names:
        if (checkpoint.folder / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)
    log.info(
        "%s is built; at the first start on its card TensorRT-LLM chooses its kernels (kept in .tuned/, in the folder "
        "if it can be written) and at every start it captures CUDA graphs",
        checkpoint.source,
    )


def _modules(checkpoint: Checkpoint) -> list[Mapping[str, str]]:
    return list(checkpoint.read_json("modules.json", required=False) or ())
