"""Post-training quantisation to fp8 or fp4 by NVIDIA's modelopt, on a GPU where there is one, else on the CPU.

What is quantised is the transformer alone, as transformers reads it without its head: heads, poolers and the modules of
sentence-transformers stay in f32 and are in the folder beside it.
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
from bei_core.engines.quality import Bar, Quality, measure
from bei_core.engines.tensorrt_llm.artifact import WEIGHTS, Facts, top_tensors, write_config, write_weights
from bei_core.engines.tensorrt_llm.models.pooling import Spans
from bei_core.engines.tensorrt_llm.models.top import make_top
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Text, Tokens

log = logging.getLogger(__name__)

# Encoding has no KV cache, so what quantises it besides changes nothing here.
_SAME = {"fp8_kv": "fp8", "fp4_kv": "fp4"}
_CONFIGS = {"fp8": "FP8_DEFAULT_CFG", "fp4": "NVFP4_DEFAULT_CFG"}
# Modules by the names that transformers gives them. A pooler is a head that BERT keeps in its transformer; a norm's
# inputs would be rounded in modelopt's simulation, and are not in the engine.
_PLAIN = ("*pooler*", "*classifier*", "*score*", "*lm_head*", "*embeddings_project*", "*LayerNorm*", "*norm*")
_ATTENTION = ("*attn*", "*attention*")
# Layers that are one product in the engine, which has one scale for all of it.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
_SAYS = "hf_quant_config.json"  # how the weights are quantised, for TensorRT-LLM


@dataclass(frozen=True)
class Recipe:
    """How a model is quantised."""

    kind: str  # "fp8", "fp4", either with "_mlp_only"
    calibration: Calibration
    samples: Samples
    bar: Bar

    @classmethod
    def of(cls, how: Quantization, spec: ModelSpec, bar: Bar) -> Recipe:
        """The recipe of what is asked for. Raises ConfigError where the calibration texts cannot be read."""
        return cls(_SAME.get(how.type, how.type), how.calibration, read_samples(how.calibration, spec), bar)

    @property
    def precision(self) -> str:
        """Of the weights: "fp8" or "fp4"."""
        return self.kind.partition("_")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """What of the transformer is quantised."""
        return ("mlp",) if self.kind.endswith("_mlp_only") else ("attention", "mlp")

    def identity(self) -> dict[str, object]:
        """All that decides the quantised weights, besides the checkpoint and the spec."""
        return {
            "quantization": self.kind,
            "calibration": msgspec.structs.asdict(self.calibration) | {"dataset": self.samples.digest},
            "with": versions(),
        }

    def config(self) -> Any:
        """What modelopt is told: its own recipe, less what stays as it is."""
        config = copy.deepcopy(getattr(mtq, _CONFIGS[self.precision]))
        unquantized = _PLAIN if "attention" in self.parts else _PLAIN + _ATTENTION
        config["quant_cfg"] += [{"quantizer_name": name, "enable": False} for name in unquantized]
        return config


def versions() -> dict[str, str]:
    """Of what computes the scales."""
    return {package: version(package) for package in ("nvidia-modelopt", "torch", "transformers")}


def fill(folder: Path, checkpoint: Checkpoint, facts: Facts, recipe: Recipe) -> Quality:
    """Writes the engine folder; how near its rows are to those before. Raises QualityError where they are too far."""
    network = _Network(checkpoint, facts)

    def encoded(texts: Sequence[Text]) -> list[Tokens]:
        return encode(texts, facts.spec, checkpoint.folder / TOKENIZER, recipe.calibration.max_seq_length)

    held_out, calibration = encoded(recipe.samples.held_out), encoded(recipe.samples.calibration)
    reference = network.rows(held_out)
    with torch.inference_mode():
        mtq.quantize(network.model, recipe.config(), forward_loop=lambda _: network.run(calibration))
        _share_scales(network.model)
    quality = measure(reference, network.rows(held_out), facts.spec.kind).check(recipe.bar)
    log.info("%s in %s: %s", checkpoint.source, recipe.kind, quality)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _export(network.model, Path(temporary))
        _assemble(Path(temporary), folder, checkpoint, facts)
    return quality


class _Network:
    """The transformer that is quantised, in transformers' own code, with our top on it."""

    def __init__(self, checkpoint: Checkpoint, facts: Facts) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        # "eager" is the definition; torch's fused attention leaves out Gemma 2's soft cap.
        self.model = AutoModel.from_pretrained(
            checkpoint.folder, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
        self.model = self.model.to(self.device).eval()
        # transformers' Qwen 2 has no switch for it, but takes a mask as it is.
        self.sees_all = facts.mask == "full" and facts.family == "qwen2"
        self.has_types = int(facts.spec.config.get("type_vocab_size") or 0) > 1
        self.top = make_top(facts)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in top_tensors(checkpoint, facts)}
        self.top.load(tensors, self.device)

    def rows(self, texts: Sequence[Tokens]) -> npt.NDArray[np.float32]:
        """f32[N, D], each text alone."""
        with torch.inference_mode():
            rows = [self.top(hidden, ids, Spans.of(lengths, kept)) for hidden, ids, lengths, kept in self._each(texts)]
        found: npt.NDArray[np.float32] = torch.cat(rows).cpu().numpy()
        return found

    def run(self, texts: Sequence[Tokens]) -> None:
        """Runs each text alone, so that no padding is in the ranges that modelopt sees."""
        for _ in self._each(texts):
            pass

    def _each(self, texts: Sequence[Tokens]) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Token vectors [L, H], ids i32[L], the length i32[1], and bool[L], which of them pooling counts."""
        for text in texts:
            ids = torch.from_numpy(text.ids).to(self.device)
            more = {}
            if self.has_types:
                more["token_type_ids"] = torch.from_numpy(text.type_ids).to(self.device)[None].long()
            if self.sees_all:
                more["attention_mask"] = torch.zeros(
                    1, 1, len(ids), len(ids), device=self.device, dtype=self.model.dtype
                )
            hidden = self.model(input_ids=ids[None].long(), **more).last_hidden_state[0]
            length = torch.tensor([len(ids)], dtype=torch.int32, device=self.device)
            yield hidden, ids, length, torch.arange(len(ids), device=self.device) >= text.skip


def _share_scales(model: Any) -> None:
    """Gives layers that become one product the range of the widest, so that what is measured is what will run."""
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
    """Modelopt's own form of the quantised transformer, which refuses a config without `architectures`."""
    model.config.architectures = [type(model).__name__]
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=folder)


def _assemble(exported: Path, folder: Path, checkpoint: Checkpoint, facts: Facts) -> None:
    """The engine folder of an exported one: our config.json, one file of weights, what modelopt says of them."""
    written = json.loads((exported / "config.json").read_text())
    write_config(facts, "bfloat16", folder, {"quantization_config": written["quantization_config"]})
    transformer = resolve(str(exported)).tensors()
    write_weights(transformer, checkpoint, facts, "bfloat16", folder / WEIGHTS)
    shutil.copyfile(exported / _SAYS, folder / _SAYS)
