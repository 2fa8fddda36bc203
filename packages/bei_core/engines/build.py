"""Plans the build of an engine from a checkpoint: its manifest, with its address, and the function that builds it."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from bei_core import checkpoint as checkpoints
from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import quantization_of
from bei_core.engines.manifest import SCHEMA, SPEC, TOKENIZER, Manifest, key_of, seal
from bei_core.engines.quality_report import REPORT
from bei_core.errors import ConfigError, EngineUnavailableError, UnsupportedModelError
from bei_core.models.sentence.modules import read_pipeline
from bei_core.models.sentence.settings import read_transformer
from bei_core.models.spec import ModelSpec, read_spec, save_spec
from bei_core.text.published import RULES, canonical_tokenizer, check_tokenizer, static_tokenizer
from bei_core.text.templates import chosen_template

log = logging.getLogger(__name__)


class Builder(Protocol):
    """The interface of `engines/NAME/build.py`."""

    def facts(self, settings: Settings) -> Mapping[str, object]:
        """What this engine adds to the key of a ref: its versions, its own settings, the processor."""
        ...

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        """Raise as `plan` for a model or settings that the engine cannot run; needs neither weights nor a processor."""
        ...

    def plan(self, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
        """The plan of a checkpoint's engine; builds nothing yet."""
        ...


class Build(NamedTuple):
    """A build that has not started."""

    manifest: Manifest  # of the engine, without the list of its files
    fill: Callable[[Path], None]  # builds the engine in a folder


def request_facts(builder: Builder, settings: Settings) -> dict[str, object]:
    """The part of a ref's key that does not come from the settings: versions of formats, and the builder's facts."""
    return {"schema": SCHEMA, "tokenizer": RULES, "facts": builder.facts(settings)}


def reason_not_to_build(builder: Builder, spec: ModelSpec, settings: Settings) -> str | None:
    """Why an engine cannot be built for a model with these settings; None if it can."""
    try:
        builder.check(spec, settings)
    except (UnsupportedModelError, ConfigError, EngineUnavailableError) as error:
        return str(error)
    return None


def plan_model(
    builders: Sequence[Builder], settings: Settings, root: Path, checkpoint: Checkpoint | None = None
) -> Build:
    """The build of the settings' model by the first builder that supports it; settings must suit this builder.

    Without `checkpoint`, it is fetched into `root` if necessary. Raises CheckpointError, DiskError,
    UnsupportedModelError, ConfigError (also without a rerank_template that the model needs), and as the builder's
    `plan`.
    """
    if settings.trt_llm is not None and (ignored := settings.trt_llm.ignored()):
        log.warning("trt_llm keys without effect: %s", ", ".join(ignored))
    checkpoint = checkpoint or fetch_checkpoint(settings, root)
    template = chosen_template(settings.rerank_template, None)
    spec = read_spec(checkpoint, pooling=settings.pooling, template=template)
    chosen_template(settings.rerank_template, spec.template, spec.template_fault)
    refusals: dict[str, None] = {}  # each once: TensorRT-LLM's classes are torch's, and so are their limits
    for builder in builders[:-1]:
        try:
            builder.check(spec, settings)
        except UnsupportedModelError as error:
            log.info("another engine is built for %s: %s", checkpoint.source, error)
            refusals[str(error)] = None
        else:
            return plan_build(builder, checkpoint, spec, settings)
    try:
        return plan_build(builders[-1], checkpoint, spec, settings)
    except UnsupportedModelError as error:
        raise UnsupportedModelError("; ".join([*refusals, str(error)])) from error


def model_id_of(settings: Settings) -> str:
    """The name of the settings' model. Raises ConfigError if there is none."""
    if not settings.model_id:
        raise ConfigError("no model is given; pass --model-id with a folder or a Hugging Face repository")
    return settings.model_id


def fetch_checkpoint(settings: Settings, root: Path) -> Checkpoint:
    """The checkpoint of the settings' model, fetched into `root` if necessary. Raises CheckpointError, DiskError."""
    fetch = partial(
        checkpoints.resolve,
        model_id_of(settings),
        settings.revision,
        token=settings.hf_token,
        secret=settings.checkpoint_secret,
        cache_dir=settings.huggingface_hub_cache,
        root=root,
        check=check_small_files,
    )
    return _interruptible(fetch)


def _interruptible(call: Callable[[], Checkpoint]) -> Checkpoint:
    """The value of a call. In the main thread, Ctrl-C ends the wait for it at once.

    Downloads run in pools of threads, and leaving such a pool waits for its threads, which may wait for a server.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    done: Future[Checkpoint] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return done.result()


def check_small_files(folder: Path) -> None:
    """Raise StartError if the small files of a model already show that it cannot be served."""
    checkpoint = Checkpoint(folder, str(folder), "")
    pipeline = read_pipeline(checkpoint, read_transformer(checkpoint))
    if pipeline is None or pipeline.task != "static":
        check_tokenizer(folder / checkpoint.first_module)


def plan_build(builder: Builder, checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Build:
    """The build of a checkpoint. Raises as the builder's `plan`."""
    plan, quantization = builder.plan(checkpoint, spec, settings), quantization_of(settings)
    read_tokenizer = static_tokenizer if spec.is_static else canonical_tokenizer
    tokenizer = read_tokenizer(checkpoint.folder / checkpoint.first_module)
    parts = {"schema": SCHEMA, "engine": plan.engine, "precision": plan.precision, "spec": spec}
    parts |= {"tokenizer": tokenizer.digest}
    manifest = Manifest(
        engine=plan.engine,
        precision=plan.precision,
        mlp_only=None if quantization is None else quantization.mlp_only,
        dtype=settings.dtype,
        source=checkpoint.source,
        revision=checkpoint.revision,
        artifact=key_of({**parts, "revision": checkpoint.revision, **plan.artifact}),
        built_with=dict(plan.built_with),
    )

    def fill(folder: Path) -> None:
        started = time.perf_counter()
        tokenizer.write(folder / TOKENIZER)
        save_spec(spec, folder / SPEC)
        try:
            quality = plan.fill(folder)
        finally:
            _keep_report(folder, settings.cache_dir / "reports" / f"{manifest.artifact}.html")
        seal(folder, msgspec.structs.replace(manifest, quality=quality))
        seconds = time.perf_counter() - started
        log.info("engine built %s from %s in %.1f s", manifest.artifact, checkpoint.source, seconds)

    return Build(manifest, fill)


def _keep_report(folder: Path, target: Path) -> None:
    """Move the report of the quality gate out of the engine's folder, which is deleted if the engine is refused.

    It names texts of the user's own, so it is no part of an engine that others get.
    """
    if not (folder / REPORT).is_file():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / REPORT, target)
        log.info("report of the quality: %s", target)
    except OSError as error:  # the engine matters more
        (folder / REPORT).unlink(missing_ok=True)
        log.warning("the report of the quality cannot be written to %s: %s", target, error.strerror or error)
