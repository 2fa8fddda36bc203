"""A model by its name to an engine that runs: an engine folder as it is, anything else by way of the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.calibration import quantization_of
from bei_core.engines.manifest import SPEC, TOKENIZER, Manifest, check_digests, is_engine, read_manifest
from bei_core.engines.provider import Supply
from bei_core.engines.quality import bar_of
from bei_core.engines.registry import CPU, GPU, require
from bei_core.errors import CheckpointError, ConfigError, EngineCorruptError, EngineUnavailableError
from bei_core.models.spec import Dense, ModelSpec, load_spec
from bei_core.storage.marks import Held
from bei_core.storage.objects import shown
from bei_core.text.templates import chosen_template

log = logging.getLogger(__name__)

# The `dtype` settings that an engine's weights can be computed in, besides auto.
_DTYPES = {
    "f32": ("float32", "bfloat16"),
    "int8": ("float32", "bfloat16", "int8"),
    "bf16": ("bfloat16",),
    "f16": ("float16",),
    "fp8": ("bfloat16",),
    "fp4": ("bfloat16",),
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A model ready to serve."""

    engine: Engine
    spec: ModelSpec
    tokenizer: Path  # tokenizer.json
    manifest: Manifest
    held: Held | None = None  # its place in the store

    def close(self) -> None:
        """Frees the engine, then its place in the store."""
        self.engine.close()
        if self.held is not None:
            self.held.release()


def open_engine(settings: Settings) -> Opened:
    """The engine of `settings.model_id`: loaded from its folder, or from the store, built into it if need be.

    A damaged one of the store is set aside and built again. Raises ConfigError, CheckpointError, UnsupportedModelError,
    DiskError, EngineUnavailableError, QualityError.
    """
    if settings.model_id and is_engine(folder := Path(settings.model_id)):
        return _open_folder(settings, folder)
    supply = Supply(settings)
    try:
        return _open_held(settings, supply)
    except EngineCorruptError as fault:
        log.error("%s; it is set aside and built again", fault)
        return _open_held(settings, supply)


def build_engine(settings: Settings, target: Path | None = None) -> Path:
    """The engine folder for `settings.model_id`, at `target` or at its address in the store; built unless there."""
    supply = Supply(settings, to_run=False)
    if target is not None:
        supply.build(target)
        return target
    held = supply.obtain()
    held.release()
    return held.folder


def load(folder: Path, dtype: str | None = None) -> Opened:
    """The engine of an engine folder, every file checked before it answers; without `dtype`, the one it was built for.

    Raises CheckpointError for a folder that is no engine, EngineCorruptError for a damaged one, DiskError,
    EngineUnavailableError.
    """
    started = time.perf_counter()
    manifest = read_manifest(folder)
    loader = _loader(manifest.engine)
    with ThreadPoolExecutor(1) as pool:  # reading and compiling take as long as the digests
        intact = pool.submit(check_digests, folder, manifest)
        try:
            spec = load_spec(folder / SPEC)
            engine = loader(folder, spec, manifest, dtype=dtype or manifest.dtype)
        except Exception:
            intact.result()  # a damaged file explains whatever went wrong
            raise
        try:
            intact.result()
        except EngineCorruptError:
            engine.close()
            raise
    log.info("engine loaded %s in %.2f s (%s)", folder, time.perf_counter() - started, engine.info.compute_type)
    return Opened(engine, spec, folder / TOKENIZER, manifest)


def _open_held(settings: Settings, supply: Supply) -> Opened:
    """The store's engine under the name that it was asked for by. Sets one aside that is EngineCorruptError."""
    held = supply.obtain()
    try:
        opened = load(held.folder, settings.dtype)  # not what the first to build it there asked for
        _check_quality(settings, opened)
    except BaseException as fault:
        held.release()
        if not isinstance(fault, CheckpointError):
            raise
        supply.store.set_aside(held.folder)
        raise EngineCorruptError(str(fault)) from fault
    named = msgspec.structs.replace(opened.manifest, source=shown(settings.model_id or ""))
    return Opened(opened.engine, opened.spec, opened.tokenizer, named, held)


def _open_folder(settings: Settings, folder: Path) -> Opened:
    """An engine folder that was named itself. Raises ConfigError where it is not what the settings ask for."""
    manifest = read_manifest(folder)
    if settings.engine not in {"auto", manifest.engine}:
        raise ConfigError(f"{folder} is built for {manifest.engine}, not for {settings.engine}")
    if settings.dtype not in ("auto", *_DTYPES.get(manifest.precision, ())):
        raise ConfigError(f"{folder} has weights in {manifest.precision}; build it again for {settings.dtype}")
    if settings.pooling is not None and not load_spec(folder / SPEC).pools_by(settings.pooling):
        raise ConfigError(f"{folder} is built with other pooling; build it again for {settings.pooling}")
    template = chosen_template(settings.rerank_template, None)
    if template is not None and not load_spec(folder / SPEC).answers_as(template):
        raise ConfigError(f"{folder} is built without the answers of this rerank_template; build it again with it")
    opened = load(folder, None if settings.dtype == "auto" else settings.dtype)
    _check_quality(settings, opened)
    return opened


def _check_quality(settings: Settings, opened: Opened) -> None:
    """Raises ConfigError where it is quantised and should not be, or the reverse; QualityError below the bar.

    Also ConfigError where `dense_path` asks for another Dense module than the engine has.
    """
    settings.check_dense_path([module.folder for module in opened.spec.modules if isinstance(module, Dense)])
    quality, asked = opened.manifest.quality, quantization_of(settings)
    if asked is not None and quality is None:
        raise ConfigError(f"{settings.model_id} is not quantised; build it again for quantization_type {asked.type}")
    if quality is not None and settings.quantization_type == "no_quant":
        raise ConfigError(f"{settings.model_id} is quantised; build it again for quantization_type no_quant")
    if quality is not None:
        quality.check(bar_of(settings))


def _loader(name: str) -> Callable[..., Engine]:
    require(name)
    if name == CPU:
        from bei_core.engines.openvino.engine import load

        return load
    if name == GPU:
        from bei_core.engines.tensorrt_llm.engine import load as load_on_gpu

        return load_on_gpu
    raise EngineUnavailableError(f"engine {name!r} is not one of {CPU}, {GPU}")
