"""Opens the engine for settings: `model_id` is an engine folder, or a model whose engine is in the cache."""

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
from bei_core.engines.manifest import TOKENIZER, Manifest, check_digests, check_once, is_engine, read_manifest
from bei_core.engines.provider import EngineProvider
from bei_core.engines.quality import bar_of
from bei_core.engines.start import Start, check_options, read_spec, start_for, start_here
from bei_core.errors import CheckpointError, ConfigError, EngineCorruptError, StartError
from bei_core.models.spec import ModelSpec
from bei_core.storage.backends import redact
from bei_core.storage.locks import Lease
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
    """The engine of `settings.model_id`, loaded from its folder or from the cache, and built if necessary.

    A damaged engine in the cache is quarantined and built again. Raises ConfigError, CheckpointError,
    UnsupportedModelError, DiskError, EngineUnavailableError, QualityError.
    """
    if settings.model_id and is_engine(folder := Path(settings.model_id)):
        return _open_folder(settings, folder)
    provider = EngineProvider(settings)
    try:
        return _open_cached(settings, provider)
    except EngineCorruptError as error:
        log.error("%s; it is quarantined and will be built again", error)
        return _open_cached(settings, provider)


def build_engine(settings: Settings, target: Path | None = None) -> Path:
    """The folder of the engine of `settings.model_id`, at `target` or in the cache; built if necessary."""
    provider = EngineProvider(settings, to_run=False)
    if target is not None:
        provider.build(target)
        return target
    lease = provider.get()
    lease.release()
    return lease.folder


def load(folder: Path, dtype: str | None = None, *, verify: str = "always", start: Start = start_here) -> Opened:
    """Load the engine in a folder and check every file. Without `dtype`, it computes in the dtype it was built for.

    If `verify` is "once", a file that has not changed since it was checked is not read again. `start` gets the
    folder and the dtype.

    Raises CheckpointError for a folder that is no engine, EngineCorruptError for a damaged one, DiskError,
    EngineUnavailableError.
    """
    started = time.perf_counter()
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(1) as pool:  # in parallel, because the digests take as long as loading the engine
        intact = pool.submit(check_once if verify == "once" else check_digests, folder, manifest)
        try:
            spec = read_spec(folder)
            engine = start(folder, dtype or manifest.dtype)
        except Exception:
            intact.result()  # raises if a file is damaged, which explains the other error
            raise
        try:
            intact.result()
        except EngineCorruptError:
            engine.close()
            raise
    log.info("engine loaded %s in %.2f s (%s)", folder, time.perf_counter() - started, engine.info.compute_type)
    return Opened(engine, spec, folder / TOKENIZER, manifest)


def _open_cached(settings: Settings, provider: EngineProvider) -> Opened:
    """The engine in the cache; its manifest names the `model_id` of the settings as its source.

    Quarantines a damaged engine and raises EngineCorruptError.
    """
    lease = provider.get()
    try:
        # The settings' dtype may differ from the dtype for which the engine was built.
        opened = _load_checked(settings, lease.folder, settings.dtype)
    except BaseException as error:
        lease.release()
        if not isinstance(error, CheckpointError):
            raise
        provider.cache.quarantine_damaged(lease.folder.name)
        raise EngineCorruptError(str(error)) from error
    named = msgspec.structs.replace(opened.manifest, source=redact(settings.model_id or ""))
    return Opened(opened.engine, opened.spec, opened.tokenizer, named, lease)


def _open_folder(settings: Settings, folder: Path) -> Opened:
    """The engine in the folder `settings.model_id`. Raises ConfigError if it does not suit the other settings."""
    manifest = read_manifest(folder)
    if settings.engine not in {"auto", manifest.engine}:
        raise ConfigError(f"{folder} is built for {manifest.engine}, not for {settings.engine}")
    if settings.dtype not in ("auto", *_DTYPES.get(manifest.precision, ())):
        raise ConfigError(f"{folder} has weights in {manifest.precision}; build it again for {settings.dtype}")
    if settings.pooling is not None and not read_spec(folder).pools_by(settings.pooling):
        raise ConfigError(f"{folder} is built with another pooling; build it again for {settings.pooling}")
    template = chosen_template(settings.rerank_template, None)
    if template is not None and not read_spec(folder).scores_by(template):
        raise ConfigError(f"{folder} is built for other answers than this rerank_template's; build it again with it")
    dtype = None if settings.dtype == "auto" else settings.dtype
    return _load_checked(settings, folder, dtype)


def _load_checked(settings: Settings, folder: Path, dtype: str | None) -> Opened:
    """As `load`, for an engine that suits the settings. Raises ConfigError, QualityError, and what `load` raises."""
    opened = load(folder, dtype, verify=settings.verify, start=start_for(settings))
    try:
        _check_quality(settings, opened)
    except StartError:
        opened.close()  # an engine in a process of its own would go on
        raise
    return opened


def _check_quality(settings: Settings, opened: Opened) -> None:
    """Raise ConfigError if the engine does not suit the settings, QualityError if it is below their thresholds."""
    if settings.pooling is not None and opened.spec.classifier is not None:  # as text-embeddings-inference does
        log.warning("pooling %s has no effect: %s is a %s", settings.pooling, settings.model_id, opened.spec.kind)
    settings.check_dense_path(opened.spec.dense_folders)
    check_options(settings, opened.manifest.engine)
    quality, asked = opened.manifest.quality, quantization_of(settings)
    if asked is not None and quality is None:
        raise ConfigError(f"{settings.model_id} is not quantised; build it again for quantization_type {asked.type}")
    found = opened.manifest.precision
    if asked is not None and opened.manifest.engine == "openvino" and found != asked.cpu_precision:
        raise ConfigError(
            f"{settings.model_id} has weights in {found}; build it again for quantization_type {asked.type}"
        )
    if quality is not None and settings.quantization_type == "no_quant":
        raise ConfigError(f"{settings.model_id} is quantised; build it again for quantization_type no_quant")
    if quality is not None:
        quality.check(bar_of(settings))
