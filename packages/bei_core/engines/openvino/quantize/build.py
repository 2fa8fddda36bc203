"""Builds a quantised engine, and compares its rows with those of the model in f32."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino

from bei_core.checkpoint import Checkpoint
from bei_core.engines.calibration import Quantization, Samples, encode
from bei_core.engines.manifest import TOKENIZER
from bei_core.engines.openvino.engine import MODEL, OpenVinoEngine
from bei_core.engines.openvino.graph import build_graph
from bei_core.engines.openvino.quantize.graph import calibration_batches, linear_bytes, quantize
from bei_core.engines.openvino.quantize.parts import outputs, reference_rows
from bei_core.engines.openvino.quantize.weights import quantize_weights
from bei_core.engines.openvino.stored import save
from bei_core.engines.quality import Bar, Comparison, Quality
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Text, Tokens

log = logging.getLogger(__name__)

# The most tokens of calibration texts, and of held-out texts, of a model with more than _LARGE_BYTES in linear layers.
_MAX_TOKENS, _LARGE_BYTES = 8192, 64 << 20


@dataclass(frozen=True, slots=True)
class QuantizedBuild:
    """The build of a quantised engine."""

    checkpoint: Checkpoint
    spec: ModelSpec
    quantization: Quantization
    samples: Samples
    bar: Bar
    precision: str  # of the computation of all that is not int8

    @property
    def _mlp_only(self) -> bool:
        return self.quantization.type.endswith("_mlp_only")

    def address(self) -> Mapping[str, object]:
        """The part of the engine's address that depends on the quantisation."""
        bits = self.quantization.bits
        return {
            **({"bits": bits} if bits else {"alpha": self.quantization.alpha}),
            "mlp_only": self._mlp_only,
            "calibration": self.quantization.calibration,
            "texts": self.samples.digest,
        }

    def fill(self, folder: Path) -> Quality:
        """Write the model and measure its quality. Raises QualityError."""
        graph = build_graph(self.spec, self.checkpoint)
        limit = _MAX_TOKENS if linear_bytes(graph) > _LARGE_BYTES else None
        inputs, held_out = (self._encode(side, folder / TOKENIZER, limit) for side in self.samples)
        batches = calibration_batches(held_out)
        reference = reference_rows(graph, batches)
        started = time.perf_counter()
        self._quantize(graph, inputs)
        save(graph, folder / MODEL)
        del graph  # frees its weights before the engine loads its own
        log.info("quantised in %.1f s; measuring quality on held-out texts", time.perf_counter() - started)
        engine = OpenVinoEngine(folder / MODEL, self.spec, self.precision, quantised=not self.quantization.bits)
        per_text = None if engine.info.row_width else [len(item) for item in held_out]
        found = Comparison(self.samples.held_out[: len(held_out)], reference, outputs(engine, batches), per_text)
        precision = self.quantization.cpu_precision
        quality = found.check(self.spec.kind, self.bar, folder, f"{self.checkpoint.source} in {precision}")
        log.info("quality of %s compared with f32: %s", precision, quality)
        return quality

    def _encode(self, texts: Sequence[Text], tokenizer: Path, limit: int | None) -> list[Tokens]:
        """Tokens of the texts; with `limit`, of the first texts until they have so many tokens together."""
        encoded = encode(texts, self.spec, tokenizer, self.quantization.calibration.max_seq_length)
        num_before = np.cumsum([0, *(len(item) for item in encoded)])[:-1]
        return [item for item, before in zip(encoded, num_before, strict=True) if limit is None or before < limit]

    def _quantize(self, graph: openvino.Model, inputs: Sequence[Tokens]) -> None:
        bits = self.quantization.bits
        if bits:
            return quantize_weights(graph, bits, mlp_only=self._mlp_only)
        batches = calibration_batches(inputs)
        log.info("quantising to int8, calibrating with %d texts (%d batches)", len(inputs), len(batches))
        quantize(graph, batches, alpha=self.quantization.alpha, mlp_only=self._mlp_only)
        return None
