"""A checkpoint to what the CPU engine's folder holds: the graph and its weights, for any processor."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import openvino

from bei_core.checkpoint import Checkpoint
from bei_core.config import Settings
from bei_core.engines.base import Plan
from bei_core.engines.openvino.engine import MODEL, precision_for
from bei_core.engines.openvino.graph import build_graph
from bei_core.spec import ModelSpec

# Part of an engine's address: raise it when the same checkpoint would give another graph.
VERSION = 3


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built. Raises EngineUnavailable for a dtype that the processor has not."""
    precision_for(settings.dtype)

    def fill(folder: Path) -> None:
        # Weights stay f32 whatever the computation: what is stored as bf16 is widened into memory of each process,
        # while f32 is used as it is mapped (docs/decisions/011-engine-store.md).
        openvino.save_model(build_graph(spec, checkpoint), folder / MODEL, compress_to_fp16=False)

    return Plan(
        engine="openvino",
        precision="f32",
        artifact={"graph": VERSION},
        fill=fill,
        built_with={"openvino": version("openvino")},
    )
