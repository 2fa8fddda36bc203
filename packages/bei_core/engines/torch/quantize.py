"""Post-training quantisation to fp8: linear layers of the transformer in e4m3, with one scale per tensor.

The calibration texts run through the unquantised model, and the largest input of each layer gives the scale of its
inputs. Layers that the engine joins into one (query, key and value; gate and up) share their scales. Heads, norms and
embeddings are not quantised. Tensors and their names follow NVIDIA's modelopt, because TensorRT-LLM reads that format.
"""

from __future__ import annotations

import json
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bei_core.checkpoint import Checkpoint, Tensors
from bei_core.engines.batch import Batch
from bei_core.engines.calibration import Calibration, Samples, calibration_batches, encode, outputs, with_progress
from bei_core.engines.manifest import TOKENIZER
from bei_core.engines.quality import Bar, Comparison, Quality
from bei_core.engines.torch.engine import TorchEngine
from bei_core.engines.torch.folder import HEAD_PREFIX, Facts, check_weights, head_tensors, write_folder
from bei_core.engines.torch.kernels.torch import Kernels, Linear, to_fp8
from bei_core.engines.torch.loading import StoredTensors, load_folder, load_model, supports
from bei_core.engines.torch.models.model import Model
from bei_core.engines.torch.tensorfile import Entry

_QUANT_CONFIG = "hf_quant_config.json"  # tells TensorRT-LLM how the weights are quantised
_ALGORITHM: dict[str, object] = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": []}
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Scheme:
    """How to quantise the parts of a model that its facts name."""

    calibration: Calibration
    samples: Samples
    bar: Bar


def built_with(facts: Facts) -> dict[str, str]:
    """Returns facts about the build, only for information: torch's version, and the linear layers that stay in bf16.

    A linear layer of a quantised part stays in bf16 if fp8 does not support its sizes (`fits_fp8`).
    """
    with torch.device("meta"):
        model = Model(facts, Kernels(torch.bfloat16))
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, Linear) and not each.fits_fp8]
    plain = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name, each in layers if each.part in facts.quantized)
    return {"torch": str(torch.__version__), **({"layers in bf16": ", ".join(plain)} if plain else {})}


def fill(folder: Path, checkpoint: Checkpoint, facts: Facts, scheme: Scheme) -> Quality:
    """Writes the engine folder; returns the quality in comparison with the unquantised model.

    Raises QualityError if the quality is too low, and CheckpointError as `check_weights`.
    """
    tensors = checkpoint.tensors()
    check_weights(tensors)
    device = torch.device("cuda" if supports("fp8") else "cpu")
    spec, dtype = facts.spec, "bfloat16" if device.type == "cuda" else "float32"
    held_out, calibration = (
        calibration_batches(encode(texts, spec, folder / TOKENIZER, scheme.calibration.max_seq_length), _BATCH_TOKENS)
        for texts in (scheme.samples.held_out, scheme.samples.calibration)
    )
    heads = {HEAD_PREFIX + name: torch.from_numpy(np.array(value)) for name, value in head_tensors(checkpoint, facts)}
    everything = ChainMap(heads, StoredTensors(tensors, device))  # type: ignore[arg-type]  # it is only read
    model = load_model(facts, everything, Kernels(getattr(torch, dtype)), device)
    reference = outputs(TorchEngine(model, spec, dtype), held_out)
    entries = _entries(tensors, _scales(model, facts.quantized, calibration))
    del model
    config = {"quantization_config": {"quant_method": "modelopt", **_ALGORITHM}}
    write_folder(folder, checkpoint, facts, "bf16", entries, config)
    (folder / _QUANT_CONFIG).write_text(json.dumps({"producer": {"name": "bei"}, "quantization": _ALGORITHM}))
    engine = TorchEngine(load_folder(folder, "fp8", device), spec, "fp8")
    per_text = None if engine.info.row_width else [int(count) for batch in held_out for count in batch.lengths]
    found = Comparison(scheme.samples.held_out, reference, outputs(engine, held_out), per_text)
    return found.check(spec.kind, scheme.bar, folder, f"{checkpoint.source} in fp8")


def _scales(model: Model, parts: Sequence[str], batches: Sequence[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns (scale of the weight, scale of the input), by the name of each layer of the checkpoint to be quantised.

    The scales are f32[] on the host.
    """
    layers = [each for each in model.modules() if isinstance(each, Linear) and each.part in parts and each.fits_fp8]
    largest = {each: torch.zeros((), device=model.device) for each in layers}

    def watch(layer: Linear, inputs: tuple[Tensor, ...]) -> None:
        largest[layer] = torch.maximum(largest[layer], inputs[0].abs().amax().float())

    hooks = [each.register_forward_pre_hook(watch) for each in layers]
    for _, batch in with_progress(batches, "calibration"):
        model.compute(batch)
    for hook in hooks:
        hook.remove()
    scales: dict[str, tuple[Tensor, Tensor]] = {}
    for each in layers:
        of_weight, of_input = (
            (value.float() / _LARGEST).clamp(min=1e-12).cpu() for value in (each.weight.abs().amax(), largest[each])
        )
        scales |= dict.fromkeys(each.layers, (of_weight, of_input))
    return scales


def _entries(tensors: Tensors, scales: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Entry]:
    """Returns entries for model.safetensors: quantised weights, which replace the checkpoint's, and their scales."""
    stored = StoredTensors(tensors, torch.device("cpu"))

    def rounded(name: str, scale: Tensor) -> npt.NDArray[np.uint8]:
        return to_fp8(stored[name], scale).view(torch.uint8).numpy()

    entries = []
    for layer, (of_weight, of_input) in scales.items():
        name, read = f"{layer}.weight", partial(rounded, f"{layer}.weight", of_weight)
        entries.append(Entry(name, "F8_E4M3", tuple(tensors.raw(name).shape), read))
        entries.append(Entry.f32(f"{layer}.weight_scale", of_weight.numpy()))
        entries.append(Entry.f32(f"{layer}.input_scale", of_input.numpy()))
    return {entry.name: entry for entry in entries}
