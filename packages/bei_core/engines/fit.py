"""Checks that a built engine fits the settings with which it is to be served."""

from __future__ import annotations

import logging
from pathlib import Path

from bei_core.config.settings import Settings
from bei_core.engines.calibration import Quantization, quantization_of
from bei_core.engines.manifest import Manifest, read_spec
from bei_core.engines.quality import bar_of
from bei_core.engines.start import check_options
from bei_core.errors import ConfigError
from bei_core.models.spec import ModelSpec
from bei_core.text.templates import chosen_template

log = logging.getLogger(__name__)

# The values of the setting `dtype` that an engine with weights of this precision supports, besides auto.
_DTYPES = {
    "f32": ("float32", "bfloat16"),
    "int8": ("float32", "bfloat16", "int8"),
    "int8_weight_only": ("float32", "bfloat16"),
    "int4_weight_only": ("float32", "bfloat16"),
    "bf16": ("bfloat16",),
    "f16": ("float16",),
    "fp8": ("bfloat16",),
}


def check_folder(settings: Settings, folder: Path, manifest: Manifest) -> None:
    """Raise ConfigError if the engine in a folder does not suit the settings."""
    if settings.engine not in {"auto", manifest.engine}:
        raise ConfigError(f"{folder} is built for {manifest.engine}, not for {settings.engine}")
    if settings.dtype not in ("auto", *_DTYPES.get(manifest.precision, ())):
        raise ConfigError(f"{folder} has weights in {manifest.precision}; build it again for {settings.dtype}")
    if manifest.quality is not None and settings.dtype not in {"auto", "int8"} and settings.quantization_type is None:
        log.warning(
            "%s has weights in %s, whatever dtype is: %s is only the type of what is not quantised. For a model in %s "
            "build it again with quantization_type no_quant",
            *(folder, manifest.precision, settings.dtype, settings.dtype),
        )
    if settings.pooling is not None and not read_spec(folder).pools_by(settings.pooling):
        raise ConfigError(f"{folder} is built with another pooling; build it again for {settings.pooling}")
    template = chosen_template(settings.rerank_template, None)
    if template is not None and not read_spec(folder).scores_by(template):
        raise ConfigError(f"{folder} is built for other answers than this rerank_template's; build it again with it")


def check_quality(settings: Settings, spec: ModelSpec, manifest: Manifest) -> None:
    """Raise ConfigError if the engine does not suit the settings, QualityError if it is below their thresholds."""
    if settings.pooling is not None and spec.classifier is not None:  # as text-embeddings-inference does
        log.warning("pooling %s has no effect: %s is a %s", settings.pooling, settings.model_id, spec.kind)
    settings.check_dense_path(spec.dense_folders)
    check_options(settings, manifest.engine)
    quality, asked = manifest.quality, quantization_of(settings)
    if asked is not None:
        _check_quantization(settings, asked, manifest)
    if quality is not None and settings.quantization_type == "no_quant":
        raise ConfigError(f"{settings.model_id} is quantised; build it again for quantization_type no_quant")
    if quality is not None:
        quality.check(bar_of(settings))


def _check_quantization(settings: Settings, asked: Quantization, manifest: Manifest) -> None:
    """Raise ConfigError if the engine is not quantised as asked."""
    problem = None
    if manifest.quality is None:
        problem = "is not quantised"
    elif manifest.engine == "openvino" and manifest.precision != asked.cpu_precision:
        problem = f"has weights in {manifest.precision}"
    elif settings.quantization_type is not None and manifest.mlp_only not in {None, asked.mlp_only}:
        problem = f"is quantised in {'the feed-forward layers only' if manifest.mlp_only else 'all layers'}"
    if problem is not None:
        raise ConfigError(f"{settings.model_id} {problem}; build it again for quantization_type {asked.type}")
