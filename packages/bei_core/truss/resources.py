"""The engine, the card and the memory that a model needs on Baseten."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from bei_core.config.settings import Settings
from bei_core.engines.calibration import quantization_of
from bei_core.engines.registry import ENGINES, OPENVINO, TENSORRT_LLM, reason_not_to_serve
from bei_core.errors import ConfigError, UnsupportedModelError
from bei_core.models.spec import ModelSpec
from bei_core.truss.described import Described

GIB = 1 << 30

# Memory of Truss's accelerators in GB, the smaller one first among those that are offered in place of a full one.
_CARD_GB = {"T4": 16, "V100": 16, "A10G": 24, "A100_40GB": 40, "L40S": 48, "A100": 80, "RTX_PRO_6000": 96, "GB300": 270}
_OFFERED_GB = {"L4": 24, "H100_40GB": 40, "H100": 80, "H200": 141, "B200": 180, "B300": 270}

# GPUs on which TensorRT-LLM's encode mode does not run, that have no fp8, and that have no fp4, from Truss
# (`truss/base/trt_llm_config.py`). They are checked here because Truss checks a trt_llm block only at the top level.
_TOO_OLD = frozenset({"T4", "V100"})
_NO_FP8 = frozenset({"A10G", "A100", "A100_40GB"})
_NO_FP4 = _NO_FP8 | {"L4", "L40S", "H100", "H100_40GB", "H200"}

# What a server needs besides weights: on a GPU, activations of a batch of 16,384 tokens and CUDA's own memory.
_GPU_EXTRA_GB, _GPU_FACTOR = 3.0, 1.1
_HOST_EXTRA_GIB, _HOST_FACTOR, _LEAST_GPU_HOST_GIB = 6.0, 1.2, 10
_CPU_EXTRA_GIB, _LEAST_CPU_GIB = 4.0, 8

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": GIB,
    "Ti": 1 << 40,
}
_QUANTITY = re.compile(r"([0-9.]+)\s*([KMGT]i?|)")


def pick_engine(spec: ModelSpec, settings: Settings, candidates: Sequence[str]) -> str:
    """The first of the engines that can serve the model. Raises UnsupportedModelError with each one's reason."""
    reasons = {name: reason_not_to_serve(name, spec, settings) for name in candidates}
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    if chosen is not None:
        return chosen
    titles: dict[str | None, list[str]] = {}  # by reason: TensorRT-LLM's classes are torch's, and so are their limits
    for name, reason in reasons.items():
        titles.setdefault(reason, []).append(ENGINES[name].title)
    said = "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in titles.items())
    on_cpu = OPENVINO not in candidates and reason_not_to_serve(OPENVINO, spec, settings) is None
    raise UnsupportedModelError(
        f"no engine that was asked for can serve {settings.model_id} ({spec.architecture}). {said}"
        + (". The CPU engine can: --cpu" if on_cpu else "")
    )


def check_card(card: str, engine: str, quantization: str) -> None:
    """Raises ConfigError if the card does not support the block's quantization type, or TensorRT-LLM at all."""
    if card in _TOO_OLD and engine == TENSORRT_LLM:
        raise ConfigError(f"{card} is too old for TensorRT-LLM; use an L4 or newer, or `--engine torch`, or `--cpu`")
    if quantization.startswith("fp8") and card in _NO_FP8:
        raise ConfigError(f"quantization_type {quantization} needs an L4, H100 or newer; with {card}, use no_quant")
    if quantization.startswith("fp4") and card in _NO_FP4:
        raise ConfigError(f"quantization_type {quantization} needs a B200 or newer; with {card}, use fp8 or no_quant")


def resources_for(
    given: Mapping[str, Any], engine: str, model: Described | None, settings: Settings
) -> tuple[dict[str, Any], list[str]]:
    """Truss's `resources` for a model, and notes for its user: what was given, but a larger card or more memory.

    Raises ConfigError if no card has the memory. `instance_type` decides everything at Baseten, so it stays alone.
    """
    if "instance_type" in given:
        return dict(given), []
    if engine == OPENVINO:
        return _cpu_resources(given, model, settings)
    if model is None:
        return dict(given), []
    name, _, count = str(given["accelerator"]).partition(":")
    card, notes = _card_for(name, model, settings)
    if count not in {"", "1"}:
        notes.append(f"BEI computes on one GPU; of resources.accelerator {given['accelerator']}, it uses one")
    memory = _memory(given, _HOST_FACTOR * 2 * model.num_params / GIB + _HOST_EXTRA_GIB, _LEAST_GPU_HOST_GIB)
    return {**given, "accelerator": f"{card}:{count}" if count else card, "memory": memory}, notes


def gpu_bytes(model: Described) -> float:
    """Bytes that the model takes on its GPU in bf16. A quantised one takes them too, while it is calibrated."""
    return _GPU_FACTOR * 2 * model.num_params + _GPU_EXTRA_GB * 1e9


def _card_for(name: str, model: Described, settings: Settings) -> tuple[str, list[str]]:
    """The card if the model fits on it, else the smallest one that it fits on, and a note. Raises ConfigError."""
    size, cards = gpu_bytes(model) / 1e9, {**_CARD_GB, **_OFFERED_GB}
    if size <= cards.get(name, size):
        return name, []
    offered = next((card for card, num_gb in _OFFERED_GB.items() if num_gb >= max(size, cards[name])), None)
    what = f"{settings.model_id} needs {size:.0f} GB of memory on one GPU"
    if quantization_of(settings) is not None:
        what += " (in bf16, while it is quantised)"
    if offered is None:
        raise ConfigError(f"{what}, and the largest, {list(_OFFERED_GB)[-1]}, has {max(_OFFERED_GB.values())} GB")
    return offered, [f"resources.accelerator is {offered} in place of {name}, which has {cards[name]} GB: {what}"]


def _cpu_resources(
    given: Mapping[str, Any], model: Described | None, settings: Settings
) -> tuple[dict[str, Any], list[str]]:
    """Processors and memory of a CPU Truss. OpenVINO holds the weights and its own order of them at the same time."""
    num_bytes = 0 if model is None else 2 * model.weight_bytes
    if model is not None and quantization_of(settings) is not None:
        num_bytes = 2 * 4 * model.num_params + model.weight_bytes  # the f32 engine to compare with, and the new one
    memory = _memory(given, num_bytes / GIB + _CPU_EXTRA_GIB, _LEAST_CPU_GIB)
    size = parse_quantity(memory) / GIB
    cpu = str(given.get("cpu") or 4) if "accelerator" not in given else "4"
    if size > 16:
        cpu = "8" if size <= 32 else "16"
    notes = (
        [f"{memory} of memory is asked for: see that Baseten has such an instance without a GPU"] if size > 64 else []
    )
    return {"cpu": cpu, "memory": memory}, notes


def _memory(given: Mapping[str, Any], needed_gib: float, least_gib: int) -> str:
    """The larger one of the memory that is given and that is needed, in Truss's form."""
    wanted = max(least_gib, 2 * ceil(needed_gib / 2))
    asked = str(given.get("memory") or "")
    return asked if asked and parse_quantity(asked) >= wanted * GIB else f"{wanted}Gi"


def parse_quantity(text: str) -> float:
    """Bytes of a quantity of Kubernetes, such as 10Gi. Raises ConfigError."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"resources.memory {text!r} is not a quantity such as 10Gi")
    return float(match[1]) * _UNITS[match[2]]
