"""Builds the CPU engine: writes the files of an engine folder from a checkpoint. Any processor can load them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Plan
from bei_core.engines.calibration import quantization_of, read_samples
from bei_core.engines.openvino.engine import MODEL, precision_for
from bei_core.engines.openvino.graph import build_graph, family_for
from bei_core.engines.openvino.quantize.build import QuantizedBuild
from bei_core.engines.openvino.stored import save
from bei_core.engines.quality import bar_of
from bei_core.models.spec import ModelSpec

# Part of an engine's address. Increment it when the same checkpoint would give another graph or another spec.
VERSION = 17

# Part of the address of an int8 engine. Increment it when quantisation gives other weights.
INT8_VERSION = 6

# Part of the address of an engine with quantised weights only. Increment it when quantisation gives other weights.
WEIGHTS_VERSION = 1


def facts(settings: Settings) -> Mapping[str, object]:
    """The part of an engine's address that needs no checkpoint. One f32 engine serves every `dtype` but int8."""
    how = quantization_of(settings)
    if how is None:
        return {"graph": VERSION}
    return {"graph": VERSION, **({"weights": WEIGHTS_VERSION} if how.bits else {"int8": INT8_VERSION})}


def check(spec: ModelSpec, settings: Settings) -> None:
    """Raises UnsupportedModelError."""
    family_for(spec)


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built.

    Raises as `check`, EngineUnavailableError for a dtype that the processor does not support, ConfigError if the
    calibration texts cannot be read.
    """
    check(spec, settings)
    precision, built_with = precision_for(settings.dtype), {"openvino": version("openvino")}
    how = quantization_of(settings)
    if how is not None:
        samples = read_samples(how.calibration, spec)
        build = QuantizedBuild(checkpoint, spec, how, samples, bar_of(settings), precision)
        artifact = {**facts(settings), **build.address()}
        return Plan("openvino", how.cpu_precision, artifact, build.fill, built_with)

    def fill(folder: Path) -> None:
        save(build_graph(spec, checkpoint), folder / MODEL)

    return Plan("openvino", "f32", facts(settings), fill, built_with)
