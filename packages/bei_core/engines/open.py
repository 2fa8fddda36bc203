"""A model's name to a loaded engine: from an engine folder itself, for any other name through the cache."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.calibration import quantization_of
from bei_core.engines.manifest import SPEC, TOKENIZER, Manifest, check_digests, is_engine, read_manifest
from bei_core.engines.provider import EngineProvider
from bei_core.engines.quality import bar_of
from bei_core.engines.registry import load_loader
from bei_core.engines.verified import check_once
from bei_core.errors import CheckpointError, ConfigError, EngineCorruptError
from bei_core.models.spec import Dense, ModelSpec, load_spec
from bei_core.storage.drivers import redact
from bei_core.storage.locks import Lease
from bei_core.text.templates import chosen_template

log = logging.getLogger(__name__)

# The `dtype` settings that are possible with an engine's weights, besides auto.
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
    lease: Lease | None = None  # on its entry in the cache

    def close(self) -> None:
        """Free the engine, then release its lease."""
        self.engine.close()
        if self.lease is not None:
            self.lease.release()


def open_engine(settings: Settings) -> Opened:
    """The engine of `settings.model_id`: loaded from its folder, or from the cache, built into it if necessary.

    A damaged engine in the cache is quarantined and built again. Raises ConfigError, CheckpointError,
    UnsupportedModelError, DiskError, EngineUnavailableError, QualityError.
    """
    if settings.model_id and is_engine(folder := Path(settings.model_id)):
        return _open_folder(settings, folder)
    provider = EngineProvider(settings)
    try:
        return _open_cached(settings, provider)
    except EngineCorruptError as error:
        log.error("%s; it is quarantined and built again", error)
        return _open_cached(settings, provider)


def build_engine(settings: Settings, target: Path | None = None) -> Path:
    """The engine folder of `settings.model_id`, at `target` or in the cache; built unless it is there."""
    provider = EngineProvider(settings, to_run=False)
    if target is not None:
        provider.build(target)
        return target
    lease = provider.get()
    lease.release()
    return lease.folder


def load(folder: Path, dtype: str | None = None, *, verify: str = "always") -> Opened:
    """The engine of an engine folder, after a check of every file; without `dtype`, in the one it was built for.

    If `verify` is "once", a file that has not changed since it was checked is not read again.

    Raises CheckpointError for a folder that is no engine, EngineCorruptError for a damaged one, DiskError,
    EngineUnavailableError.
    """
    started = time.perf_counter()
    manifest = read_manifest(folder)
    loader = load_loader(manifest.engine)
    with ThreadPoolExecutor(1) as pool:  # digests take as long as reading and compiling
        intact = pool.submit(check_once if verify == "once" else check_digests, folder, manifest)
        try:
            spec = _load_spec(folder)
            engine = loader(folder, spec, manifest, dtype=dtype or manifest.dtype)
        except Exception:
            intact.result()  # a damaged file explains any other error
            raise
        try:
            intact.result()
        except EngineCorruptError:
            engine.close()
            raise
    log.info("engine loaded %s in %.2f s (%s)", folder, time.perf_counter() - started, engine.info.compute_type)
    return Opened(engine, spec, folder / TOKENIZER, manifest)


def _open_cached(settings: Settings, provider: EngineProvider) -> Opened:
    """The engine in the cache, under the name that it was asked for by.

    Quarantines a damaged one and raises EngineCorruptError.
    """
    lease = provider.get()
    try:
        opened = load(
            lease.folder, settings.dtype, verify=settings.verify
        )  # which may differ from the dtype of the settings that built it
        _check_quality(settings, opened)
    except BaseException as error:
        lease.release()
        if not isinstance(error, CheckpointError):
            raise
        provider.cache.quarantine_damaged(lease.folder.name)
        raise EngineCorruptError(str(error)) from error
    named = msgspec.structs.replace(opened.manifest, source=redact(settings.model_id or ""))
    return Opened(opened.engine, opened.spec, opened.tokenizer, named, lease)


def _open_folder(settings: Settings, folder: Path) -> Opened:
    """The engine of a folder that the settings name. Raises ConfigError if it is not what they ask for."""
    manifest = read_manifest(folder)
    if settings.engine not in {"auto", manifest.engine}:
        raise ConfigError(f"{folder} is built for {manifest.engine}, not for {settings.engine}")
    if settings.dtype not in ("auto", *_DTYPES.get(manifest.precision, ())):
        raise ConfigError(f"{folder} has weights in {manifest.precision}; build it again for {settings.dtype}")
    if settings.pooling is not None and not _load_spec(folder).pools_by(settings.pooling):
        raise ConfigError(f"{folder} is built with other pooling; build it again for {settings.pooling}")
    template = chosen_template(settings.rerank_template, None)
    if template is not None and not _load_spec(folder).answers_as(template):
        raise ConfigError(f"{folder} is built without the answers of this rerank_template; build it again with it")
    opened = load(folder, None if settings.dtype == "auto" else settings.dtype, verify=settings.verify)
    _check_quality(settings, opened)
    return opened


def _check_quality(settings: Settings, opened: Opened) -> None:
    """Raise ConfigError if the engine is not what the settings ask for, QualityError if it is below the bar."""
    settings.check_dense_path([module.folder for module in opened.spec.modules if isinstance(module, Dense)])
    quality, asked = opened.manifest.quality, quantization_of(settings)
    if asked is not None and quality is None:
        raise ConfigError(f"{settings.model_id} is not quantised; build it again for quantization_type {asked.type}")
    if quality is not None and settings.quantization_type == "no_quant":
        raise ConfigError(f"{settings.model_id} is quantised; build it again for quantization_type no_quant")
    if quality is not None:
        quality.check(bar_of(settings))


def _load_spec(folder: Path) -> ModelSpec:
    """The spec of an engine folder. Raises EngineCorruptError naming a field that is malformed."""
    try:
        return load_spec(folder / SPEC)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineCorruptError(f"engine corrupt: {folder / SPEC} is not a spec: {error}") from error
