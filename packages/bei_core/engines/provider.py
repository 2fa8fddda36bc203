"""Provides the engine for settings: from the cache, else from an object store, else built from the checkpoint."""

from __future__ import annotations

import hashlib
import logging
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

from bei_core.checkpoint import Checkpoint, lease_checkpoint, resolve
from bei_core.config.settings import SETTINGS, Settings
from bei_core.engines.build import Build, model_id_of, plan_model, reason_not_to_build, request_facts
from bei_core.engines.cache import EngineCache, EngineRef, publish_engine
from bei_core.engines.calibration import quantization_of
from bei_core.engines.manifest import is_engine, key_of, read_manifest, read_spec
from bei_core.engines.registry import OPENVINO, candidates, load_builder
from bei_core.engines.remote import RemoteEngine, RemoteEngines, engine_at
from bei_core.errors import CheckpointError, ConfigError, DiskError, EngineCorruptError
from bei_core.storage.backends import is_store, redact, store_examples
from bei_core.storage.errors import OUTPUT, translate_os_errors
from bei_core.storage.locks import Lease

log = logging.getLogger(__name__)


class EngineProvider:
    """Provides the engine for the settings of one model."""

    def __init__(self, settings: Settings, *, to_run: bool = True, checkpoint: Checkpoint | None = None) -> None:
        """With `to_run` false, the engine need not be able to run on this machine.

        With the model's checkpoint, if it is fetched already, the hub is not asked again. Raises ConfigError if there
        is no model or `engine_store` is not a store's URL, and EngineUnavailableError if the engine cannot be built, or
        run, on this machine.
        """
        self._model_id = model_id_of(settings)
        if settings.engine_store is not None and not is_store(settings.engine_store):
            raise ConfigError(
                f"engine_store is {redact(settings.engine_store)!r}: expected the URL of an object store, "
                f"such as {store_examples()}"
            )
        self._settings = settings
        with_devices = bool(settings.devices) or settings.tensor_parallel_size > 1
        self._engines = candidates(settings.engine, with_devices=with_devices, to_run=to_run)
        self._builders = [load_builder(name) for name in self._engines]
        self.cache = EngineCache.of(settings)
        self._checkpoints = settings.cache_dir / "checkpoints"
        self._checkpoint = checkpoint
        url = settings.engine_store
        self._remote = None if url is None else RemoteEngines(url, settings.engine_store_secret)
        self._quantization = quantization_of(settings)
        texts = [] if self._quantization is None else [self._quantization.calibration.dataset]
        self._local = [name for name in (self._model_id, *texts) if Path(name).exists()]
        self._remote_is_damaged = False

    def get(self) -> Lease:
        """A lease on the engine in the cache. If the cache has a ref to the engine, the hub is not contacted.

        Raises CheckpointError, DiskError, UnsupportedModelError, QualityError.
        """
        keys = self._request_keys()
        with self.cache.lock(keys[0]):
            for key in keys:
                found = None if self._settings.refresh else self.cache.find_by_ref(key, self._model_id)
                if (lease := found or self._fetch(key)) is not None:
                    if key == keys[0] or self._is_chosen(lease.folder):
                        return lease
                    return self._build_instead(keys, lease)
            return self._build(keys)

    def _build_instead(self, keys: list[str], other: Lease) -> Lease:
        """As `_build`, but returns `other`, a lease on the engine in the cache, if the checkpoint cannot be fetched."""
        try:
            lease = self._build(keys)
        except (CheckpointError, DiskError) as error:
            log.warning("another engine is preferred, but cannot be built: %s", error)
            return other
        except BaseException:
            other.release()
            raise
        other.release()
        return lease

    def report_fallback(self, folder: Path) -> None:
        """Log a warning, with the reasons, if the engine in a folder is for CPUs, although there is a GPU."""
        if read_manifest(folder).engine == OPENVINO != self._engines[0]:
            reasons = [reason for name, reason in self._refusals(folder).items() if name != OPENVINO]
            why = f"The engine {'at this URL' if is_store(self._model_id) else 'in the cache'} is for the CPU"
            if None not in reasons:
                why = f"No engine for the GPU serves it: {'; '.join(dict.fromkeys(map(str, reasons)))}"
            name = redact(self._model_id)
            log.warning("%s runs on the CPU; set engine=%s to silence this. %s", name, OPENVINO, why)

    def _refusals(self, folder: Path) -> dict[str, str | None]:
        """Why each engine, the preferred one first, cannot serve the model of an engine folder; None for one that can.

        Raises EngineCorruptError.
        """
        spec, builders = read_spec(folder), zip(self._engines, self._builders, strict=True)
        return {name: reason_not_to_build(builder, spec, self._settings) for name, builder in builders}

    def _is_chosen(self, folder: Path) -> bool:
        """Whether this version of BEI chooses the engine in a folder; the ref to it may be of another version.

        True for a damaged one, which is found when it is loaded.
        """
        try:
            engine, refusals = read_manifest(folder).engine, self._refusals(folder)
        except (CheckpointError, DiskError):
            return True
        return engine == next((name for name, reason in refusals.items() if reason is None), None)

    def build(self, target: Path) -> None:
        """Build the engine in the folder `target`, unless it already has this engine. Raises as `get`, and ConfigError.

        ConfigError is for a folder with any other content.
        """
        with lease_checkpoint(self._model_id, self._checkpoints):
            build = plan_model(self._builders, self._settings, self._checkpoints, self._checkpoint)
            with translate_os_errors(target, OUTPUT):
                if is_engine(target):
                    if read_manifest(target).artifact != build.manifest.artifact:
                        raise ConfigError(f"{target} holds another engine; name another folder")
                elif target.exists() and (not target.is_dir() or any(target.iterdir())):
                    raise ConfigError(f"{target} exists and is not empty; name a new folder")
                else:
                    publish_engine(target, build.fill)

    def _request_keys(self) -> list[str]:
        """The keys of refs: hashes of the settings and versions that decide the engine, without the checkpoint.

        The first is that of the preferred engine. A second one is that of another engine which is built because those
        before it cannot serve the model; it counts only as long as they cannot. Local files may change under the same
        name, so a digest of their content is part of the keys.
        """
        parts: dict[str, object] = {
            name: getattr(self._settings, name) for name, one in SETTINGS.items() if one.about.decides_engine
        }
        if self._quantization is not None:
            parts["quantization"] = self._quantization
        if self._local:
            parts["content"] = [_content_digest(name) for name in self._local]
        facts = [request_facts(builder, self._settings) for builder in self._builders]
        keys = [key_of({"engine": self._engines[0], **facts[0], **parts})]
        if len(self._engines) > 1:
            keys.append(key_of({"engine": self._engines, "facts": facts, **parts}))
        return keys

    def _fetch(self, key: str) -> Lease | None:
        """A lease on an engine from an object store: at the URL `model_id`, or by a ref of a replica; else None."""
        if self._local:  # on another machine, the same name may mean another folder, or a repository on the hub
            return None
        try:
            return self._fetch_url(key) or (None if self._settings.refresh else self._fetch_shared(key))
        except CheckpointError as error:
            log.warning("%s", error)
            return None

    def _fetch_url(self, key: str) -> Lease | None:
        if not is_store(self._model_id):
            return None
        engine = engine_at(self._model_id, self._settings.checkpoint_secret)
        if (manifest := engine.manifest()) is None:
            return None
        return self._pull(key, EngineRef(manifest.artifact, manifest.revision), engine)

    def _fetch_shared(self, key: str) -> Lease | None:
        if self._remote is None or (ref := self._remote.get_ref(key)) is None:
            return None
        return self._pull(key, ref, self._remote.engine(ref.artifact))

    def _pull(self, key: str, ref: EngineRef, engine: RemoteEngine) -> Lease:
        lease = self.cache.obtain(ref.artifact, partial(engine.pull, artifact=ref.artifact))
        self.cache.set_ref(key, ref.encode())
        return lease

    def _build(self, keys: list[str]) -> Lease:
        """A lease on the engine of the checkpoint: from the cache, else pulled from the object store, else built."""
        with lease_checkpoint(self._model_id, self._checkpoints) as release:
            build = plan_model(self._builders, self._settings, self._checkpoints, self._checkpoint)

            def fill(folder: Path) -> None:
                self._pull_or_build(folder, build)
                release()  # the checkpoint is no longer needed and may be evicted

            lease = self.cache.obtain(build.manifest.artifact, fill)
        ref = EngineRef(build.manifest.artifact, build.manifest.revision)
        key = keys[0] if build.manifest.engine == self._engines[0] else keys[-1]
        self.cache.set_ref(key, ref.encode())
        self._push(lease.folder, key, ref)
        return lease

    def _pull_or_build(self, folder: Path, build: Build) -> None:
        """Pull the engine into a folder from the object store. If it is missing or damaged there, build it."""
        artifact = build.manifest.artifact
        engine = None if self._remote is None else self._remote.engine(artifact)
        try:
            if engine is not None and engine.manifest() is not None:
                return engine.pull(folder, artifact=artifact)
        except CheckpointError as error:
            log.warning("%s; building the engine instead", error)
            self._remote_is_damaged = isinstance(error, EngineCorruptError)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return build.fill(folder)

    def _push(self, folder: Path, key: str, ref: EngineRef) -> None:
        """Copy the engine into the object store, if the settings name one. A failure is only logged."""
        if self._remote is None:
            return
        try:
            self._remote.push(folder, force=self._remote_is_damaged)
            if not self._local:
                self._remote.set_ref(key, ref)
        except CheckpointError as error:
            log.warning("the engine cannot be shared with other replicas: %s", error)


def _content_digest(name: str) -> str:
    """The digest of a model's folder or of a file of texts; "" for any other file, or if it cannot be read."""
    path = Path(name)
    if path.is_dir():
        return resolve(name).revision
    with suppress(OSError):  # the code that reads the texts raises the error for the user
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in {".txt", ".jsonl"} else ""
    return ""
