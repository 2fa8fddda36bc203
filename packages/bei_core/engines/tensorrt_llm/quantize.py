"""Post-training quantisation to fp8 or fp4 by NVIDIA's modelopt, on a GPU if there is one, else on the CPU.

Only the linear layers of the transformer (loaded by `AutoModel`) are quantised. Heads, poolers and the modules of
sentence-transformers stay in f32.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import msgspec
import numpy as np
import numpy.typing as npt
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import AutoModel

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.engines.calibration import Calibration, Quantization, Samples, encode, read_samples
from bei_core.engines.manifest import TOKENIZER
from bei_core.engines.quality import Bar, Comparison, Quality
from bei_core.engines.torch.folder import WEIGHTS, Facts, head_tensors, write_config, write_weights
from bei_core.engines.torch.models.heads import make_head
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Text, Tokens

log = logging.getLogger(__name__)

# Encoding has no KV cache, so types that also quantise the KV cache are the same as those that do not.
_ALIASES = {"fp8_kv": "fp8", "fp4_kv": "fp4"}
_CONFIGS = {"fp8": "FP8_DEFAULT_CFG", "fp4": "NVFP4_DEFAULT_CFG"}
# Modules of transformers that are not quantised. BERT's pooler is part of its head. Norms are listed because modelopt
# would quantise their inputs in its simulation, and the engine does not.
_PLAIN = ("*pooler*", "*classifier*", "*score*", "*lm_head*", "*embeddings_project*", "*LayerNorm*", "*norm*")
_ATTENTION = ("*attn*", "*attention*")
# Layers that the engine fuses into one linear layer, which has one scale.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
_QUANT_CONFIG = "hf_quant_config.json"  # tells TensorRT-LLM how the weights are quantised


@dataclass(frozen=True)
class Scheme:
    """How to quantise a model."""

    quantization: str  # "fp8", "fp4", either with "_mlp_only"
    calibration: Calibration
    samples: Samples
    bar: Bar

    @classmethod
    def of(cls, quantization: Quantization, spec: ModelSpec, bar: Bar) -> Scheme:
        """The scheme for a requested quantisation. Raises ConfigError if the calibration texts cannot be read."""
        name, calibration = _ALIASES.get(quantization.type, quantization.type), quantization.calibration
        return cls(name, calibration, read_samples(calibration, spec), bar)

    @property
    def precision(self) -> str:
        """Precision of the quantised weights: "fp8" or "fp4"."""
        return self.quantization.partition("_")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the transformer that are quantised."""
        return ("mlp",) if self.quantization.endswith("_mlp_only") else ("attention", "mlp")

    def address(self) -> dict[str, object]:
        """All that decides the quantised weights, besides the checkpoint and the spec: part of the engine's address."""
        return {
            "quantization": self.quantization,
            "calibration": msgspec.structs.asdict(self.calibration) | {"dataset": self.samples.digest},
            "with": versions(),
        }

    def config(self) -> Any:
        """Modelopt's own configuration, with the quantisers of all other modules disabled."""
        config = copy.deepcopy(getattr(mtq, _CONFIGS[self.precision]))
        unquantized = _PLAIN if "attention" in self.parts else _PLAIN + _ATTENTION
        config["quant_cfg"] += [{"quantizer_name": name, "enable": False} for name in unquantized]
        return config


def versions() -> dict[str, str]:
    """Versions of the packages that compute the scales."""
    return {package: version(package) for package in ("nvidia-modelopt", "torch", "transformers")}


def fill(folder: Path, checkpoint: Checkpoint, facts: Facts, scheme: Scheme) -> Quality:
    """Writes the engine folder; returns the quality against the unquantised model. Raises QualityError if too low."""
    model = _CalibrationModel(checkpoint, facts)

    def encoded(texts: Sequence[Text]) -> list[Tokens]:
        return encode(texts, facts.spec, folder / TOKENIZER, scheme.calibration.max_seq_length)

    held_out, calibration = encoded(scheme.samples.held_out), encoded(scheme.samples.calibration)
    reference = model.rows(held_out)
    with torch.inference_mode():
        mtq.quantize(model.transformer, scheme.config(), forward_loop=lambda _: model.run(calibration))
        _share_scales(model.transformer)
    found = Comparison(scheme.samples.held_out, reference, model.rows(held_out))
    quality = found.check(facts.spec.kind, scheme.bar, folder, f"{checkpoint.source} in {scheme.quantization}")
    log.info("quality of %s in %s: %s", checkpoint.source, scheme.quantization, quality)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _export(model.transformer, Path(temporary))
        _assemble(Path(temporary), folder, checkpoint, facts)
    return quality


class _CalibrationModel:
    """The transformer to be quantised, in transformers' own code, with our pooling and heads."""

    def __init__(self, checkpoint: Checkpoint, facts: Facts) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        # "eager", because torch's fused attention ignores Gemma 2's soft cap.
        transformer = AutoModel.from_pretrained(
            checkpoint.folder, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
        self.transformer = transformer.to(self.device).eval()
        # These have no setting for bidirectional attention in transformers, but use a 4D mask as given.
        self.is_bidirectional = facts.mask == "full" and facts.family in {"llama", "mistral", "qwen2", "qwen3"}
        self.has_types = int(facts.spec.config.get("type_vocab_size") or 0) > 1
        self.head = make_head(facts.spec)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in head_tensors(checkpoint, facts)}
        self.head.load(tensors, self.device)

    def rows(self, texts: Sequence[Tokens]) -> npt.NDArray[np.float32]:
        """f32[B, D] of B sequences, each computed alone."""
        with torch.inference_mode():
            rows = [self.head.rows(hidden, sequences) for hidden, sequences in self._each(texts)]
        result: npt.NDArray[np.float32] = torch.cat(rows).cpu().numpy()
        return result

    def run(self, texts: Sequence[Tokens]) -> None:
        """Runs each sequence alone, so that no padding affects the ranges that modelopt records."""
        for _ in self._each(texts):
            pass

    def _each(self, texts: Sequence[Tokens]) -> Iterator[tuple[Any, Sequences]]:
        """Token vectors [L, H] of each sequence, and the sequence as a batch of one."""
        for text in texts:
            ids = torch.from_numpy(text.ids).to(self.device)
            types, positions = (
                torch.from_numpy(text.type_ids).to(self.device),
                torch.arange(len(ids), device=ids.device),
            )
            length = torch.tensor([len(ids)], dtype=torch.int32, device=self.device)
            more = {"token_type_ids": types[None].long()} if self.has_types else {}
            if self.is_bidirectional:
                more["attention_mask"] = torch.zeros(
                    1, 1, len(ids), len(ids), device=self.device, dtype=self.transformer.dtype
                )
            hidden = self.transformer(input_ids=ids[None].long(), **more).last_hidden_state[0]
            yield hidden, Sequences(ids, types, positions, positions >= text.skip, length, [len(ids)])


def _share_scales(model: Any) -> None:
    """Gives layers that the engine fuses the same range, the widest, so that the measured quality is the engine's."""
    for module in model.modules():
        children = dict(module.named_children())
        for names in _FUSED:
            layers = [children[name] for name in names if name in children]
            for of in ("weight_quantizer", "input_quantizer"):
                quantizers = [getattr(layer, of) for layer in layers if getattr(layer, of).is_enabled]
                if quantizers:
                    widest = torch.stack([each.amax for each in quantizers]).amax(0)
                    for each in quantizers:
                        each.amax = widest


def _export(model: Any, folder: Path) -> None:
    """Writes the quantised transformer in modelopt's format."""
    model.config.architectures = [type(model).__name__]  # modelopt refuses a config without it
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=folder)


def _assemble(exported: Path, folder: Path, checkpoint: Checkpoint, facts: Facts) -> None:
    """Makes the engine folder from modelopt's export: our config.json, one file of weights, the quantisation config."""
    written = json.loads((exported / "config.json").read_text())
    write_config(facts, "bfloat16", folder, {"quantization_config": written["quantization_config"]})
    transformer = resolve(str(exported)).tensors()
    write_weights(transformer, checkpoint, facts, "bfloat16", folder / WEIGHTS)
    shutil.copyfile(exported / _QUANT_CONFIG, folder / _QUANT_CONFIG)
