"""A checkpoint to an engine folder: graph, compiled model, tokenizer, spec."""

from __future__ import annotations

import logging
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import msgspec
import openvino

from bei_core.checkpoint import Checkpoint
from bei_core.engines import cache
from bei_core.engines.openvino.engine import BLOB, compile_properties, precision_for, runtime_facts
from bei_core.engines.openvino.graph import build_graph
from bei_core.errors import ConfigError
from bei_core.spec import ModelSpec, save_spec

log = logging.getLogger(__name__)

# Part of an engine's address: raise it when the same checkpoint would give another graph.
GRAPH_VERSION = 2


def build(checkpoint: Checkpoint, spec: ModelSpec, target: Path | None, *, dtype: str, root: Path) -> Path:
    """The engine folder of a checkpoint: `target`, or its address under `root`; built unless it is there.

    Raises UnsupportedModel, CheckpointError, EngineUnavailable.
    """
    precision = precision_for(dtype)
    manifest = cache.Manifest(
        engine="openvino",
        precision=precision,
        source=checkpoint.source,
        revision=checkpoint.revision,
        runtime=runtime_facts(),
    )
    built_with = {package: version(package) for package in ("openvino", "tokenizers", "numpy", "msgspec")}
    if target is None:
        target = root / cache.key_of({"manifest": manifest, "spec": spec, "graph": GRAPH_VERSION})
    if cache.is_engine(target):
        if not cache.read_manifest(target).is_of(manifest):
            raise ConfigError(f"{target} holds an engine of another model or machine; name another folder")
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there and is not empty; name a new folder")
    started = time.perf_counter()
    noted = msgspec.structs.replace(manifest, built_with=built_with)
    cache.publish(target, noted, lambda folder: _fill(folder, checkpoint, spec, precision))
    log.info("engine built %s from %s in %.1f s", target, checkpoint.source, time.perf_counter() - started)
    return target


def _fill(folder: Path, checkpoint: Checkpoint, spec: ModelSpec, precision: str) -> None:
    """Writes the files of an engine folder."""
    shutil.copyfile(checkpoint.folder / cache.TOKENIZER, folder / cache.TOKENIZER)
    save_spec(spec, folder / cache.SPEC)
    compiled = openvino.Core().compile_model(build_graph(spec, checkpoint), "CPU", compile_properties(precision))
    with (folder / BLOB).open("wb") as file:
        file.write(compiled.export_model().getbuffer())
