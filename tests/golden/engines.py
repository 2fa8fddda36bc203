"""The spec of a checkpoint's folder; its CPU engine, built into a folder and loaded back from it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.config.settings import Settings
from bei_core.engines.build import plan_build
from bei_core.engines.cache import publish_engine
from bei_core.engines.open import Opened, load
from bei_core.engines.openvino import build
from bei_core.models.spec import ModelSpec, read_spec


@cache
def spec_of(folder: Path) -> ModelSpec:
    """The spec of a checkpoint's folder with no options, read once for all tests."""
    return read_spec(resolve(str(folder)))


def built(checkpoint: Checkpoint, spec: ModelSpec, folder: Path, *, dtype: str = "float32") -> Opened:
    """The engine at `folder`, computing in `dtype`."""
    settings = Settings.load({"dtype": dtype}, {"HOME": "/nonexistent"})
    publish_engine(folder, plan_build(build, checkpoint, spec, settings)[1])
    return load(folder)
