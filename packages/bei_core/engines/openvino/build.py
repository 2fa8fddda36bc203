"""Builds the CPU engine: writes the files of an engine folder from a checkpoint. Any processor can load them."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.base import Engine, Plan
from bei_core.engines.batch import Batch
from bei_core.engines.calibration import Quantization, Samples, encode, quantization_of, read_samples, with_progress
from bei_core.engines.manifest import TOKENIZER
from bei_core.engines.openvino.engine import MODEL, OpenVinoEngine, precision_for
from bei_core.engines.openvino.graph import build_graph, check_spec
from bei_core.engines.openvino.quantize.graph import calibration_batches, quantize
from bei_core.engines.quality import Bar, Comparison, Quality, bar_of
from bei_core.errors import EngineUnavailableError
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)

# Part of an engine's address. Increment it when the same checkpoint would give another graph.
VERSION = 6

# Part of the address of an int8 engine. Increment it when quantisation gives other weights.
INT8_VERSION = 4


def facts(settings: Settings) -> Mapping[str, object]:
    """The part of an engine's address that needs no checkpoint. One f32 engine serves every `dtype` but int8."""
    if quantization_of(settings) is None:
        return {"graph": VERSION}
    return {"graph": VERSION, "int8": INT8_VERSION}


def check(spec: ModelSpec, settings: Settings) -> None:
    """Raises UnsupportedModelError, EngineUnavailableError for fp4."""
    check_spec(spec)
    how = quantization_of(settings)
    if how is not None and how.type.startswith("fp4"):
        raise EngineUnavailableError(
            f"quantization_type {how.type}: the CPU engine does not multiply int4 weights by int8 activations; use fp8 "
            "(int8 on a CPU), fp8_mlp_only or no_quant"
        )


def plan(checkpoint: Checkpoint, spec: ModelSpec, settings: Settings) -> Plan:
    """The engine of a checkpoint, not yet built.

    Raises as `check`, EngineUnavailableError for a dtype that the processor does not support, ConfigError if the
    calibration texts cannot be read.
    """
    check(spec, settings)
    precision = precision_for(settings.dtype)
    how = quantization_of(settings)
    if how is not None:
        return _Int8(checkpoint, spec, how, bar_of(settings), precision).plan(facts(settings))

    def fill(folder: Path) -> None:
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
    """The build of a quantised engine."""

    checkpoint: Checkpoint
    spec: ModelSpec
    quantization: Quantization
    bar: Bar
    precision: str  # of the layers that are not quantised

    def plan(self, address: Mapping[str, object]) -> Plan:
        """The plan; `address` has the parts of the address that do not depend on the quantisation."""
        samples = read_samples(self.quantization.calibration, self.spec)
        return Plan(
            engine="openvino",
            precision="int8",
            artifact={
                **address,
                "mlp_only": self._mlp_only,
                "alpha": self.quantization.alpha,
                "calibration": self.quantization.calibration,
                "texts": samples.digest,
            },
            fill=lambda folder: self._fill(folder, samples),
            built_with={"openvino": version("openvino")},
        )

    @property
    def _mlp_only(self) -> bool:
        return self.quantization.type == "fp8_mlp_only"

    def _fill(self, folder: Path, samples: Samples) -> Quality:
        """Write the model and measure its quality. Raises QualityError."""
        limit = self.quantization.calibration.max_seq_length
        texts, held_out = (calibration_batches(encode(side, self.spec, folder / TOKENIZER, limit)) for side in samples)
        graph = build_graph(self.spec, self.checkpoint)
        reference = outputs(OpenVinoEngine(graph, self.spec, "f32"), held_out)
        started = time.perf_counter()
        log.info("quantising to int8, calibrating with %d texts (%d batches)", len(samples.calibration), len(texts))
        quantize(graph, texts, alpha=self.quantization.alpha, mlp_only=self._mlp_only)
        _save(graph, folder / MODEL)
        log.info("quantised to int8 in %.1f s; measuring quality on held-out texts", time.perf_counter() - started)
        engine = OpenVinoEngine(folder / MODEL, self.spec, self.precision, quantised=True)
        per_text = [int(n) for batch in held_out for n in batch.lengths] if not engine.info.row_width else None
        found = Comparison(samples.held_out, reference, outputs(engine, held_out), per_text)
        quality = found.check(self.spec.kind, self.bar, folder, f"{self.checkpoint.source} in int8")
        log.info("quality of int8 compared with f32: %s", quality)
        return quality


def _save(model: openvino.Model, path: Path) -> None:
    """Write a graph and its weights. Raises OSError for errors of the file system, such as a full disk."""
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as fault:
        if "iostream error" not in str(fault):
            raise
        # OpenVINO's error does not name the reason. A request for the same space raises the file system's own error.
        constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 + sum(node.get_byte_size() for node in constants))
        raise OSError(errno.EIO, "the model could not be written", str(path)) from fault


def outputs(engine: Engine, batches: Sequence[Batch]) -> npt.NDArray[np.float32]:
    """f32[B, D] of all batches together, or f32[T, E] for a model that gives rows of tokens only."""
    run = engine.forward if engine.info.row_width else lambda batch: engine.forward_tokens(batch)[1]
    what = f"held-out texts in {engine.info.precision}"
    return np.concatenate([run(batch) for _, batch in with_progress(batches, what)])
