"""Where a model's engine comes from: the store here, else an object store, else the checkpoint, built."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from bei_core import checkpoint as checkpoints
from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import quantization_of
from bei_core.engines.manifest import SCHEMA, SPEC, TOKENIZER, Manifest, is_engine, key_of, read_manifest, seal
from bei_core.engines.registry import CPU, GPU, choose, require
from bei_core.engines.remote import Remote, RemoteEngine
from bei_core.engines.store import Held, Request, Store, publish
from bei_core.errors import CheckpointError, ConfigError, EngineCorruptError, EngineUnavailableError
from bei_core.models.spec import ModelSpec, read_spec, save_spec
from bei_core.storage.disk import OUTPUT, writing
from bei_core.storage.objects import is_store, shown
from bei_core.text.published import RULES, canonical_tokenizer, check_tokenizer
from bei_core.text.templates import chosen_template

log = logging.getLogger(__name__)

# The settings that decide which engine a model is given, besides the engine's name.
_DECIDING = ("model_id", "revision", "pooling", "rerank_template")


class Builder(Protocol):
    """What `engines/NAME/build.py` has."""

    def facts(self, settings: Settings) -> Mapping[str, object]:
        """What chooses among a model's engines of this name: versions, settings of its own, the processor."""
        ...

    def plan(self, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
        """The engine of a checkpoint, not yet built."""
        ...


class Supply:
    """Engines for one model's settings."""

    def __init__(self, settings: Settings, *, to_run: bool = True) -> None:
        """Raises ConfigError without a model or a store's URL, EngineUnavailableError if it cannot be built here."""
        if not settings.model_id:
            raise ConfigError("no model is given; pass --model-id with a folder or a Hugging Face repository")
        if settings.engine_store is not None and not is_store(settings.engine_store):
            raise ConfigError(
                f"engine_store is {shown(settings.engine_store)!r}: expected the URL of an object store, "
                "such as s3://bucket/folder, gs://bucket/folder, azure://account/container/folder or file:///folder"
            )
        self._settings = settings
        self._model_id = settings.model_id
        self._name = choose(settings.engine, to_run=to_run)
        self._builder = builder_of(self._name)
        self.store = store_of(settings)
        self._checkpoints = checkpoints_of(settings)
        url = settings.engine_store
        self._remote = None if url is None else Remote(url, settings.engine_store_secret)
        self._quantization = quantization_of(settings)
        texts = [] if self._quantization is None else [self._quantization.calibration.dataset]
        # Their content may change, so they are read at each start.
        self._is_local = any(Path(name).exists() for name in (settings.model_id, *texts))
        self._remote_is_damaged = False

    def obtain(self) -> Held:
        """The engine's place in the store, held. No hub is asked where the same was asked for before and is there.

        Raises CheckpointError, DiskError, UnsupportedModelError, QualityError.
        """
        parts: dict[str, object] = {name: getattr(self._settings, name) for name in _DECIDING}
        if self._quantization is not None:
            parts["quantization"] = self._quantization
        # The schema: replicas of another version that share the store keep answers of their own.
        key = key_of(
            {
                "schema": SCHEMA,
                "tokenizer": RULES,
                "engine": self._name,
                "facts": self._builder.facts(self._settings),
                **parts,
            }
        )
        with self.store.locked(key):
            return self._known(key) or self._from_checkpoint(key)

    def build(self, target: Path) -> None:
        """Builds the engine at `target`; one of the same that is there stays. Raises as `obtain`, and ConfigError."""
        with checkpoints.staying(self._model_id, self._checkpoints):
            manifest, make = self._recipe()
            with writing(target, OUTPUT):
                if is_engine(target):
                    if read_manifest(target).artifact != manifest.artifact:
                        raise ConfigError(f"{target} holds another engine; name another folder")
                elif target.exists() and (not target.is_dir() or any(target.iterdir())):
                    raise ConfigError(f"{target} is there and is not empty; name a new folder")
                else:
                    publish(target, make)

    def _known(self, key: str) -> Held | None:
        """The engine that is known without looking at the checkpoint."""
        if self._is_local:
            return None
        refresh = self._settings.refresh
        try:
            held = None if refresh else self.store.answered(key)
            return held or self._at_url(key) or (None if refresh else self._answered_elsewhere(key))
        except CheckpointError as fault:
            log.warning("%s", fault)
            return None

    def _at_url(self, key: str) -> Held | None:
        """The engine that the model's name is the URL of."""
        url, secret = self._model_id, self._settings.checkpoint_secret
        engine = RemoteEngine.at(url, secret) if is_store(url) else None
        manifest = None if engine is None else engine.manifest()
        if engine is None or manifest is None:
            return None
        held = self.store.obtain(manifest.artifact, lambda folder: engine.pull(folder, artifact=manifest.artifact))
        self.store.remember(key, Request(manifest.artifact, shown(url), manifest.revision))
        return held

    def _answered_elsewhere(self, key: str) -> Held | None:
        """The engine that another replica put into the object store for the same request."""
        remote = self._remote
        answer = None if remote is None else remote.answered(key)
        if remote is None or answer is None:
            return None
        held = self.store.obtain(answer.artifact, lambda folder: remote.pull(answer.artifact, folder))
        self.store.remember(key, answer)
        return held

    def _from_checkpoint(self, key: str) -> Held:
        with checkpoints.staying(self._model_id, self._checkpoints) as done:
            manifest, make = self._recipe()

            def fill(folder: Path) -> None:
                self._fill(folder, manifest, make)
                done()  # the store makes room after this, and the checkpoint is needed no more

            held = self.store.obtain(manifest.artifact, fill)
        answer = Request(manifest.artifact, manifest.source, manifest.revision)
        if not self._is_local:  # another folder, or the hub, may be meant by the same name elsewhere
            self.store.remember(key, answer)
        self._share(held.folder, key, answer)
        return held

    def _fill(self, folder: Path, manifest: Manifest, make: Callable[[Path], None]) -> None:
        """Fills a folder from the object store, or by building where it is not there or damaged."""
        remote = self._remote
        try:
            if remote is not None and remote.manifest(manifest.artifact) is not None:
                return remote.pull(manifest.artifact, folder)
        except CheckpointError as fault:
            log.warning("%s; it is built here instead", fault)
            self._remote_is_damaged = isinstance(fault, EngineCorruptError)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return make(folder)

    def _share(self, folder: Path, key: str, answer: Request) -> None:
        """Puts the engine into the object store, where there is one; a start does not fail by it."""
        if self._remote is None:
            return
        try:
            self._remote.push(folder, force=self._remote_is_damaged)
            if not self._is_local:
                self._remote.remember(key, answer)
        except CheckpointError as fault:
            log.warning("the engine is not shared with other replicas: %s", fault)

    def _recipe(self) -> tuple[Manifest, Callable[[Path], None]]:
        settings = self._settings
        _say_ignored(settings)
        found = checkpoints.resolve(
            self._model_id,
            settings.revision,
            token=settings.hf_token,
            secret=settings.checkpoint_secret,
            cache_dir=settings.huggingface_hub_cache,
            root=self._checkpoints,
            check=check_tokenizer,
        )
        template = chosen_template(settings.rerank_template, None)
        return recipe(self._builder, found, read_spec(found, pooling=settings.pooling, template=template), settings)


def recipe(
    builder: Builder, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings
) -> tuple[Manifest, Callable[[Path], None]]:
    """The manifest of the engine that would be built, less its files, and what fills a folder with it."""
    plan = builder.plan(checkpoint, spec, settings)
    tokenizer = canonical_tokenizer(checkpoint.folder)
    parts = {"schema": SCHEMA, "engine": plan.engine, "precision": plan.precision, "spec": spec}
    parts |= {"tokenizer": tokenizer.digest}
    manifest = Manifest(
        engine=plan.engine,
        precision=plan.precision,
        dtype=settings.dtype,
        source=checkpoint.source,
        revision=checkpoint.revision,
        artifact=key_of({**parts, "revision": checkpoint.revision, **plan.artifact}),
        built_with=dict(plan.built_with),
    )

    def make(folder: Path) -> None:
        started = time.perf_counter()
        tokenizer.write(folder / TOKENIZER)
        save_spec(spec, folder / SPEC)
        seal(folder, msgspec.structs.replace(manifest, quality=plan.fill(folder)))
        seconds = time.perf_counter() - started
        log.info("engine built %s from %s in %.1f s", manifest.artifact, checkpoint.source, seconds)

    return manifest, make


def store_of(settings: Settings) -> Store:
    """The store in the settings' cache folder; its cap is on the fetched checkpoints too."""
    cap = settings.cache_size_gb
    return Store(
        settings.cache_dir / "engines",
        checkpoints=checkpoints_of(settings),
        max_bytes=None if cap is None else int(cap * 1e9),
    )


def checkpoints_of(settings: Settings) -> Path:
    """Where checkpoints are that are fetched, but for the hub's, which are in huggingface_hub's own cache."""
    return settings.cache_dir / "checkpoints"


def builder_of(name: str) -> Builder:
    """What builds engines of a name. Raises EngineUnavailableError with the install command where it cannot be."""
    if name == CPU:
        require(CPU)
        from bei_core.engines.openvino import build

        return build
    if name == GPU:  # needs no card, and not its package
        from bei_core.engines.tensorrt_llm import build as build_for_gpu

        return build_for_gpu
    raise EngineUnavailableError(f"engine {name!r} is not one of {CPU}, {GPU}")


def _say_ignored(settings: Settings) -> None:
    """Logs what a configuration asks for and this engine does not do."""
    block = settings.trt_llm
    if block is None:
        return
    if block.ignored():
        log.warning("trt_llm keys that mean nothing here: %s", ", ".join(block.ignored()))
