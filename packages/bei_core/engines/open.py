"""A model by its name to an engine that runs: an engine folder as it is, anything else built first."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bei_core import checkpoint as checkpoints
from bei_core.config import Settings
from bei_core.engines import cache
from bei_core.engines.base import Engine
from bei_core.errors import ConfigError, EngineUnavailable
from bei_core.spec import ModelSpec, load_spec, read_spec
from bei_core.templates import chosen_template

log = logging.getLogger(__name__)

# The `dtype` setting that gives each precision of a manifest.
PRECISION_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Opened:
    """A model ready to serve."""

    engine: Engine
    spec: ModelSpec
    tokenizer: Path  # tokenizer.json
    manifest: cache.Manifest


def open_engine(settings: Settings) -> Opened:
    """The engine of `settings.model_id`: loaded from its folder, built into the cache before that if need be.

    Raises ConfigError, CheckpointError, UnsupportedModel, EngineUnavailable.
    """
    if settings.model_id and cache.is_engine(folder := Path(settings.model_id)):
        opened = load(folder)
        _check_agreement(settings, opened)
        return opened
    return load(build_engine(settings))


def build_engine(settings: Settings, target: Path | None = None) -> Path:
    """The engine folder for `settings.model_id`, at `target` or at its address in the cache; built unless there."""
    if not settings.model_id:
        raise ConfigError("no model is given; pass --model-id with a folder or a Hugging Face repository")
    _say_ignored(settings)
    builder = _builder(_engine_name(settings.engine))
    found = checkpoints.resolve(settings.model_id, settings.revision, token=settings.hf_token)
    spec = read_spec(found, pooling=settings.pooling, template=chosen_template(settings.rerank_template, None))
    return builder(found, spec, target, dtype=settings.dtype, root=settings.cache_dir / "engines")


def load(folder: Path) -> Opened:
    """The engine of an engine folder. Raises CheckpointError where the folder is not whole."""
    started = time.perf_counter()
    manifest = cache.read_manifest(folder)
    spec = load_spec(folder / cache.SPEC)
    engine = _loader(manifest.engine)(folder, spec, manifest)
    log.info("engine loaded %s in %.2f s (%s)", folder, time.perf_counter() - started, engine.info.compute_type)
    return Opened(engine, spec, folder / cache.TOKENIZER, manifest)


def _check_agreement(settings: Settings, opened: Opened) -> None:
    """Raises ConfigError where the settings ask for something else than what the engine folder was built for."""
    manifest = opened.manifest
    if settings.engine not in {"auto", manifest.engine}:
        raise ConfigError(f"{settings.model_id} is built for {manifest.engine}, not for {settings.engine}")
    if settings.dtype not in {"auto", PRECISION_DTYPES[manifest.precision]}:
        raise ConfigError(f"{settings.model_id} is built in {manifest.precision}; build it again for {settings.dtype}")
    if settings.pooling is not None and not opened.spec.pools_by(settings.pooling):
        raise ConfigError(f"{settings.model_id} is built with other pooling; build it again for {settings.pooling}")


def _say_ignored(settings: Settings) -> None:
    """Logs what a configuration asks for and this engine does not do."""
    block = settings.trt_llm
    if block is None:
        return
    if block.ignored():
        log.warning("trt_llm keys that mean nothing here: %s", ", ".join(block.ignored()))
    if block.build.quantization_type != "no_quant":
        log.warning("quantization_type %s is not available yet; dtype decides", block.build.quantization_type)


def _engine_name(name: str) -> str:
    return "openvino" if name == "auto" else name


def _builder(name: str) -> Callable[..., Path]:
    if name == "openvino":
        _require("openvino")
        from bei_core.engines.openvino.build import build

        return build
    raise _unknown(name)


def _loader(name: str) -> Callable[[Path, ModelSpec, cache.Manifest], Engine]:
    if name == "openvino":
        _require("openvino")
        from bei_core.engines.openvino.engine import load

        return load
    raise _unknown(name)


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise EngineUnavailable(f"the {package} engine needs the package {package}: pip install {package}")


def _unknown(name: str) -> EngineUnavailable:
    return EngineUnavailable(f"engine {name!r} is not available in this build; known are: openvino")
