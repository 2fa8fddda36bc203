"""Opens the engine for settings: `model_id` is an engine folder, or a model whose engine is in the cache."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.fit import check_folder, check_quality
from bei_core.engines.manifest import (
    TOKENIZER,
    Manifest,
    check_digests,
    check_once,
    delete_tuned,
    is_engine,
    read_manifest,
    read_spec,
)
from bei_core.engines.provider import EngineProvider
from bei_core.engines.start import start_for, start_here
from bei_core.errors import CheckpointError, EngineCorruptError, StartError
from bei_core.models.spec import ModelSpec
from bei_core.models.tokenizer import open_model_tokenizer
from bei_core.storage.backends import redact
from bei_core.storage.locks import Lease
from bei_core.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A model ready to serve."""

    engine: Engine
    spec: ModelSpec
    tokenizer: Path  # tokenizer.json
    manifest: Manifest
    lease: Lease | None = None  # on its entry in the cache
    reading: Future[TextTokenizer] | None = None  # of the tokenizer, which is read while the engine is loaded

    def read_tokenizer(self, settings: Settings) -> TextTokenizer:
        """The tokenizer of these settings. Raises CheckpointError if its file is malformed."""
        return _read_tokenizer(self.tokenizer, self.spec, settings) if self.reading is None else self.reading.result()

    def close(self) -> None:
        """Free the engine, then release its lease."""
        self.engine.close()
        if self.lease is not None:
            self.lease.release()


def open_engine(settings: Settings, *, for_job: bool = False) -> Opened:
    """The engine of `settings.model_id`, loaded from its folder or from the cache, and built if necessary.

    With `for_job`, it has more throughput for a job, whose batches are known in advance, and takes longer for each. A
    damaged engine in the cache is quarantined and built again. Raises ConfigError, CheckpointError,
    UnsupportedModelError, DiskError, EngineUnavailableError, QualityError.
    """
    if settings.model_id and is_engine(folder := Path(settings.model_id)):
        return _open_folder(settings, folder, for_job)
    provider = EngineProvider(settings)
    try:
        return _open_cached(settings, provider, for_job)
    except EngineCorruptError as error:
        log.error("%s; it is quarantined and will be built again", error)
        return _open_cached(settings, provider, for_job)


def build_engine(settings: Settings, target: Path | None = None) -> Path:
    """The folder of the engine of `settings.model_id`, at `target` or in the cache; built if necessary."""
    provider = EngineProvider(settings, to_run=False)
    if target is not None:
        provider.build(target)
        return target
    lease = provider.get()
    lease.release()
    return lease.folder


def load(folder: Path, dtype: str | None = None, settings: Settings | None = None, *, for_job: bool = False) -> Opened:
    """Load the engine in a folder and check every file. Without `dtype`, it computes in the dtype it was built for.

    `settings` say how it is started, and whether a file is read again that has not changed since it was checked; with
    them, the tokenizer is read, too. `for_job` is that of `open_engine`.

    Raises CheckpointError for a folder that is no engine, EngineCorruptError for a damaged one, DiskError,
    EngineUnavailableError.
    """
    started = time.perf_counter()
    try:
        opened = _load(folder, dtype, settings, for_job)
    except EngineCorruptError:
        delete_tuned(folder)  # after the engine has stopped, which may have written there
        raise
    compute_type = opened.engine.info.compute_type
    log.info("engine loaded %s in %.2f s (%s)", folder, time.perf_counter() - started, compute_type)
    return opened


def _load(folder: Path, dtype: str | None, settings: Settings | None, for_job: bool) -> Opened:
    manifest = read_manifest(folder)
    check = check_once if settings is not None and settings.verify == "once" else check_digests
    start = start_here if settings is None else start_for(settings, for_job=for_job)
    with ThreadPoolExecutor(2) as pool:  # in parallel, because each may take as long as loading the engine
        intact = pool.submit(check, folder, manifest)
        try:
            spec = read_spec(folder)
            reading = pool.submit(_read_tokenizer, folder / TOKENIZER, spec, settings) if settings is not None else None
            engine = start(folder, dtype or manifest.dtype)
        except Exception:
            intact.result()  # raises if a file is damaged, which explains the other error
            raise
        try:
            intact.result()
        except BaseException:
            engine.close()
            raise
    return Opened(engine, spec, folder / TOKENIZER, manifest, reading=reading)


def _read_tokenizer(path: Path, spec: ModelSpec, settings: Settings) -> TextTokenizer:
    return open_model_tokenizer(path, spec, settings.max_batch_tokens, num_workers=settings.tokenization_workers)


def _open_cached(settings: Settings, provider: EngineProvider, for_job: bool) -> Opened:
    """The engine in the cache; its manifest names the `model_id` of the settings as its source.

    Quarantines a damaged engine and raises EngineCorruptError.
    """
    lease = provider.get()
    try:
        # The settings' dtype may differ from the dtype for which the engine was built.
        opened = _load_checked(settings, lease.folder, settings.dtype, for_job)
    except BaseException as error:
        lease.release()
        if not isinstance(error, CheckpointError):
            raise
        provider.cache.quarantine_damaged(lease.folder.name)
        raise EngineCorruptError(str(error)) from error
    provider.report_fallback(lease.folder)
    named = msgspec.structs.replace(opened.manifest, source=redact(settings.model_id or ""))
    return replace(opened, manifest=named, lease=lease)


def _open_folder(settings: Settings, folder: Path, for_job: bool) -> Opened:
    """The engine in the folder `settings.model_id`. Raises ConfigError if it does not suit the other settings."""
    manifest = read_manifest(folder)
    check_folder(settings, folder, manifest)
    dtype = None if settings.dtype == "auto" else settings.dtype
    return _load_checked(settings, folder, dtype, for_job)


def _load_checked(settings: Settings, folder: Path, dtype: str | None, for_job: bool) -> Opened:
    """As `load`, for an engine that suits the settings. Raises ConfigError, QualityError, and what `load` raises."""
    opened = load(folder, dtype, settings, for_job=for_job)
    try:
        check_quality(settings, opened.spec, opened.manifest)
    except StartError:
        opened.close()  # an engine in a process of its own would go on
        raise
    return opened
