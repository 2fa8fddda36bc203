"""Builds a quantised engine, and compares its rows with those of the model in f32."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import openvino

from bei_core.checkpoint import Checkpoint
from bei_core.engines.calibration import Quantization, Samples, calibration_batches, encode, first_inputs, outputs
from bei_core.engines.manifest import TOKENIZER
from bei_core.engines.openvino.engine import BATCH_TOKENS, MODEL, OpenVinoEngine
from bei_core.engines.openvino.graph import build_graph
from bei_core.engines.openvino.quantize.graph import num_linear_weights, quantize
from bei_core.engines.openvino.quantize.parts import reference_rows
from bei_core.engines.openvino.quantize.weights import quantize_weights
from bei_core.engines.openvino.stored import save
from bei_core.engines.quality import Bar, Comparison, Quality, min_texts
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Text, Tokens

log = logging.getLogger(__name__)

# Floating-point operations in linear layers, of a pass over the calibration texts or over the held-out texts. Large
# models get fewer texts, but at least `min_texts` (docs/decisions/033-weight-only.md).
_MAX_OPERATIONS = 1.5e12


@dataclass(frozen=True, slots=True)
class QuantizedBuild:
    """The build of a quantised engine."""

    checkpoint: Checkpoint
    spec: ModelSpec
    quantization: Quantization
    samples: Samples
    bar: Bar
    precision: str  # of the computation of all that is not int8

    def address(self) -> Mapping[str, object]:
        """The part of the engine's address that depends on the quantisation."""
        bits = self.quantization.bits
        return {
            **({"bits": bits} if bits else {"alpha": self.quantization.alpha}),
            "mlp_only": self.quantization.mlp_only,
            "calibration": self.quantization.calibration,
            "texts": self.samples.digest,
        }

    def fill(self, folder: Path) -> Quality:
        """Write the model and measure its quality. Raises QualityError."""
        graph = build_graph(self.spec, self.checkpoint)
        max_tokens = _MAX_OPERATIONS / max(1, 2 * num_linear_weights(graph))
        held_out = self._encode(self.samples.held_out, folder, max_tokens)
        batches = calibration_batches(held_out, BATCH_TOKENS)
        reference = reference_rows(graph, batches)
        started = time.perf_counter()
        self._quantize(graph, folder, max_tokens)
        save(graph, folder / MODEL)
        del graph  # frees its weights before the engine loads its own
        log.info("quantised in %.1f s; measuring quality on held-out texts", time.perf_counter() - started)
        engine = OpenVinoEngine(folder / MODEL, self.spec, self.precision, quantised=not self.quantization.bits)
        per_text = None if engine.info.row_width else [len(item) for item in held_out]
        found = Comparison(self.samples.held_out[: len(held_out)], reference, outputs(engine, batches), per_text)
        precision = self.quantization.cpu_precision
        return found.check(self.spec.kind, self.bar, folder, f"{self.checkpoint.source} in {precision}")

    def _encode(self, texts: Sequence[Text], folder: Path, max_tokens: float) -> Sequence[Tokens]:
        encoded = encode(texts, self.spec, folder / TOKENIZER, self.quantization.calibration.max_seq_length)
        return first_inputs(encoded, max_tokens, min_texts(self.spec.kind))

    def _quantize(self, graph: openvino.Model, folder: Path, max_tokens: float) -> None:
        bits = self.quantization.bits
        if bits:
            return quantize_weights(graph, bits, mlp_only=self.quantization.mlp_only)
        inputs = self._encode(self.samples.calibration, folder, max_tokens)
        batches = calibration_batches(inputs)
        log.info("quantising to int8, calibrating with %d texts (%d batches)", len(inputs), len(batches))
        quantize(graph, batches, alpha=self.quantization.alpha, mlp_only=self.quantization.mlp_only)
        return None
