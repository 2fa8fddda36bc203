"""A checkpoint to what the CPU engine's folder holds: the graph and its weights, for any processor."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openvino

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Engine, Plan
from bei_core.engines.batch import Batch
from bei_core.engines.calibration import Quantization, Samples, encode, quantization_of, read_samples
from bei_core.engines.manifest import TOKENIZER
from bei_core.engines.openvino.engine import MODEL, Array, OpenVinoEngine, precision_for
from bei_core.engines.openvino.graph import build_graph
from bei_core.engines.openvino.quantize.graph import calibration_batches, import_nncf, quantize
from bei_core.engines.quality import Bar, Quality, bar_of, measure
from bei_core.errors import EngineUnavailableError
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)

# Part of an engine's address: raise it when the same checkpoint would give another graph.
VERSION = 3

# The same for the quantisation of a graph. nncf's version is not in the address, because a replica that finds the
# engine in the store need not have nncf: raise this when a new one gives other numbers.
INT8_VERSION = 3


def facts(settings: Settings) -> Mapping[str, object]:
    """What chooses among a model's engines: of one in f32 the graph alone, since it is computed in any dtype."""
    if quantization_of(settings) is None:
        return {"graph": VERSION}
    return {"graph": VERSION, "int8": INT8_VERSION}


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built.

    Raises EngineUnavailableError for a dtype or a quantisation that the processor has not, ConfigError for texts to
    calibrate with that cannot be read.
    """
    precision = precision_for(settings.dtype)
    how = quantization_of(settings)
    if how is not None:
        return _Int8(checkpoint, spec, how, bar_of(settings), precision).plan(facts(settings))

    def fill(folder: Path) -> None:
        # Weights stay f32 whatever the computation: what is stored as bf16 is widened into memory of each process,
        # while f32 is used as it is mapped (docs/decisions/011-engine-store.md).
        _save(build_graph(spec, checkpoint), folder / MODEL)

    return Plan(
        engine="openvino",
        precision="f32",
        artifact=facts(settings),
        fill=fill,
        built_with={"openvino": version("openvino")},
    )


@dataclass(frozen=True, slots=True)
class _Int8:
    """A quantised engine in the making."""

    checkpoint: Checkpoint
    spec: ModelSpec
    how: Quantization
    bar: Bar
    precision: str  # of what is not quantised

    def plan(self, known: Mapping[str, object]) -> Plan:
        """With what is known of its address already. Raises EngineUnavailableError for fp4."""
        if self.how.type.startswith("fp4"):
            raise EngineUnavailableError(
                f"quantization_type {self.how.type}: the CPU engine does not multiply int4 weights by int8 "
                "activations; use fp8 (int8 on a CPU), fp8_mlp_only or no_quant"
            )
        samples = read_samples(self.how.calibration, self.spec)
        return Plan(
            engine="openvino",
            precision="int8",
            artifact={
                **known,
                "mlp_only": self._mlp_only,
                "alpha": self.how.alpha,
                "calibration": self.how.calibration,
                "texts": samples.digest,
            },
            fill=lambda folder: self._fill(folder, samples),
            built_with={name: version(name) for name in ("openvino", "nncf") if find_spec(name) is not None},
        )

    @property
    def _mlp_only(self) -> bool:
        return self.how.type == "fp8_mlp_only"

    def _fill(self, folder: Path, samples: Samples) -> Quality:
        """Writes the model, and measures it. Raises QualityError, EngineUnavailableError without nncf."""
        import_nncf()
        limit = self.how.calibration.max_seq_length
        texts, held_out = (
            calibration_batches(encode(side, self.spec, self.checkpoint.folder / TOKENIZER, limit)) for side in samples
        )
        graph = build_graph(self.spec, self.checkpoint)
        reference = outputs(OpenVinoEngine(graph, self.spec, "f32"), held_out)
        started = time.perf_counter()
        log.info("quantising to int8, calibrating with %d texts (%d batches)", len(samples.calibration), len(texts))
        model = quantize(graph, texts, alpha=self.how.alpha, mlp_only=self._mlp_only)
        _save(model, folder / MODEL)
        log.info("quantised in %.1f s; measuring on texts held out", time.perf_counter() - started)
        engine = OpenVinoEngine(folder / MODEL, self.spec, self.precision, quantised=True)
        quality = measure(reference, outputs(engine, held_out), self.spec.kind).check(self.bar)
        log.info("quality of int8 beside f32: %s", quality)
        return quality


def _save(model: openvino.Model, path: Path) -> None:
    """Writes a model and its weights. Raises OSError where the disk refuses them."""
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as fault:
        if "iostream error" not in str(fault):
            raise
        # It does not say why. The system does, asked for the same room.
        constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 + sum(node.get_byte_size() for node in constants))
        raise OSError(errno.EIO, "the model could not be written", str(path)) from fault


def outputs(engine: Engine, batches: Sequence[Batch]) -> Array:
    """f32[N, D] of the texts, or f32[T, E] of their tokens where the model gives no rows of texts."""
    if engine.info.row_width:
        return np.concatenate([engine.forward(batch) for batch in batches])
    return np.concatenate([engine.forward_tokens(batch)[1] for batch in batches])
