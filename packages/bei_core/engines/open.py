"""A model by its name to an engine that runs: an engine folder as it is, else from the store, built if need be."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from bei_core import checkpoint as checkpoints
from bei_core.checkpoint import Checkpoint
from bei_core.config import Settings
from bei_core.engines.base import Engine, Plan
from bei_core.engines.choice import CPU, choose, require
from bei_core.engines.manifest import (
    SCHEMA,
    SPEC,
    TOKENIZER,
    Manifest,
    check_digests,
    is_engine,
    key_of,
    read_manifest,
    seal,
)
from bei_core.engines.store import Held, Request, Store, publish
from bei_core.errors import CheckpointError, ConfigError, EngineCorrupt, EngineUnavailable
from bei_core.spec import ModelSpec, load_spec, read_spec, save_spec
from bei_core.templates import chosen_template

log = logging.getLogger(__name__)

# The `dtype` settings that an engine's weights can be computed in, besides auto.
_DTYPES = {"f32": ("float32", "bfloat16")}

# The settings that decide which engine a model is given, besides the engine's name.
_DECIDING = ("model_id", "revision", "pooling", "rerank_template")


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


class _Builder(Protocol):
    """What `engines/NAME/build.py` has."""

    VERSION: int

    def plan(self, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan: ...


def store_of(settings: Settings) -> Store:
    """The store in the settings' cache folder."""
    cap = settings.cache_size_gb
    return Store(settings.cache_dir / "engines", max_bytes=None if cap is None else int(cap * 1e9))


def open_engine(settings: Settings) -> Opened:
    """The engine of `settings.model_id`: loaded from its folder, or from the store, built into it if need be.

    A damaged one of the store is set aside and built again. Raises ConfigError, CheckpointError, UnsupportedModel,
    EngineUnavailable, QualityError.
    """
    if settings.model_id and is_engine(folder := Path(settings.model_id)):
        return _open_folder(settings, folder)
    store = store_of(settings)
    try:
        return _open_held(settings, store)
    except EngineCorrupt as fault:
        log.error("%s; it is set aside and built again", fault)
        return _open_held(settings, store)


def build_engine(settings: Settings, target: Path | None = None) -> Path:
    """The engine folder for `settings.model_id`, at `target` or at its address in the store; built unless there."""
    if target is None:
        held = _obtain(settings, store_of(settings))
        held.release()
        return held.folder
    builder = _builder(choose(settings.engine))
    checkpoint, spec = _read(settings)
    manifest, make = recipe(builder, checkpoint, spec, settings)
    if is_engine(target):
        if read_manifest(target).artifact != manifest.artifact:
            raise ConfigError(f"{target} holds another engine; name another folder")
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there and is not empty; name a new folder")
    else:
        publish(target, make)
    return target


def load(folder: Path, dtype: str = "auto") -> Opened:
    """The engine of an engine folder, every file checked before it answers.

    Raises CheckpointError for a folder that is no engine, EngineCorrupt for a damaged one, EngineUnavailable.
    """
    started = time.perf_counter()
    manifest = read_manifest(folder)
    loader = _loader(manifest.engine)
    with ThreadPoolExecutor(1) as pool:  # reading and compiling take as long as the digests
        intact = pool.submit(check_digests, folder, manifest)
        try:
            spec = load_spec(folder / SPEC)
            engine = loader(folder, spec, manifest, dtype=manifest.dtype if dtype == "auto" else dtype)
        except Exception:
            intact.result()  # a damaged file explains whatever went wrong
            raise
        try:
            intact.result()
        except EngineCorrupt:
            engine.close()
            raise
    log.info("engine loaded %s in %.2f s (%s)", folder, time.perf_counter() - started, engine.info.compute_type)
    return Opened(engine, spec, folder / TOKENIZER, manifest)


def recipe(
    builder: _Builder, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings
) -> tuple[Manifest, Callable[[Path], None]]:
    """The manifest of the engine that would be built, less its files, and what fills a folder with it."""
    plan = builder.plan(checkpoint, spec, settings)
    parts = {"schema": SCHEMA, "engine": plan.engine, "precision": plan.precision, "spec": spec}
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
        shutil.copyfile(checkpoint.folder / TOKENIZER, folder / TOKENIZER)
        save_spec(spec, folder / SPEC)
        seal(folder, msgspec.structs.replace(manifest, quality=plan.fill(folder)))
        log.info(
            "engine built %s from %s in %.1f s", manifest.artifact, checkpoint.source, time.perf_counter() - started
        )

    return manifest, make


def _obtain(settings: Settings, store: Store) -> Held:
    """The engine's place in the store; no hub is asked where the same was asked for before and is still there."""
    name = choose(settings.engine)
    if not settings.model_id:
        raise ConfigError("no model is given; pass --model-id with a folder or a Hugging Face repository")
    builder = _builder(name)
    key = key_of({"engine": name, "version": builder.VERSION, **{of: getattr(settings, of) for of in _DECIDING}})
    is_folder = Path(settings.model_id).is_dir()  # whose content may change
    with store.locked(key):
        held = None if is_folder or settings.refresh else store.answered(key)
        if held is not None:
            return held
        checkpoint, spec = _read(settings)
        manifest, make = recipe(builder, checkpoint, spec, settings)
        held = store.obtain(manifest.artifact, make)
        store.remember(key, Request(manifest.artifact, checkpoint.source, checkpoint.revision))
        return held


def _read(settings: Settings) -> tuple[Checkpoint, ModelSpec]:
    if not settings.model_id:
        raise ConfigError("no model is given; pass --model-id with a folder or a Hugging Face repository")
    _say_ignored(settings)
    found = checkpoints.resolve(settings.model_id, settings.revision, token=settings.hf_token)
    return found, read_spec(found, pooling=settings.pooling, template=chosen_template(settings.rerank_template, None))


def _open_held(settings: Settings, store: Store) -> Opened:
    """The store's engine under the name that it was asked for by. Sets one aside that is EngineCorrupt."""
    held = _obtain(settings, store)
    try:
        opened = load(held.folder, settings.dtype)
    except BaseException as fault:
        held.release()
        if not isinstance(fault, CheckpointError):
            raise
        store.set_aside(held.folder)
        raise EngineCorrupt(str(fault)) from fault
    named = msgspec.structs.replace(opened.manifest, source=settings.model_id)
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
    return load(folder, settings.dtype)


def _say_ignored(settings: Settings) -> None:
    """Logs what a configuration asks for and this engine does not do."""
    block = settings.trt_llm
    if block is None:
        return
    if block.ignored():
        log.warning("trt_llm keys that mean nothing here: %s", ", ".join(block.ignored()))
    if block.build.quantization_type != "no_quant":
        log.warning("quantization_type %s is not available yet; dtype decides", block.build.quantization_type)


def _builder(name: str) -> _Builder:
    if name == CPU:
        require(CPU)
        from bei_core.engines.openvino import build

        return build
    raise _unknown(name)


def _loader(name: str) -> Callable[..., Engine]:
    require(name)
    if name == CPU:
        from bei_core.engines.openvino.engine import load

        return load
    raise _unknown(name)


def _unknown(name: str) -> EngineUnavailable:
    return EngineUnavailable(f"engine {name!r} is not available in this build; known are: {CPU}")
