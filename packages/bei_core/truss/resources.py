"""Chooses the engine, the card (GPU) and the memory for a model on Baseten."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from bei_core.config.settings import Settings
from bei_core.engines.calibration import quantization_of
from bei_core.engines.registry import ENGINES, OPENVINO, TENSORRT_LLM, TORCH, reason_not_to_serve
from bei_core.errors import ConfigError, UnsupportedModelError
from bei_core.models.spec import ModelSpec
from bei_core.truss.described import Described

GIB = 1 << 30

# Memory of Truss's accelerators in GB. If a card is too small, one of _OFFERED_GB replaces it, the smallest that fits.
_CARD_GB = {"T4": 16, "V100": 16, "A10G": 24, "A100_40GB": 40, "L40S": 48, "A100": 80, "RTX_PRO_6000": 96, "GB300": 270}
_OFFERED_GB = {"L4": 24, "H100_40GB": 40, "H100": 80, "H200": 141, "B200": 180, "B300": 270}

# GPUs on which TensorRT-LLM's encode mode does not run, GPUs without fp8, and GPUs without fp4. Source: Truss,
# `truss/base/trt_llm_config.py`. They are checked here because Truss checks a trt_llm block only at the top level.
_TOO_OLD = frozenset({"T4", "V100"})
_NO_FP8 = frozenset({"A10G", "A100", "A100_40GB"})
_NO_FP4 = _NO_FP8 | {"L4", "L40S", "H100", "H100_40GB", "H200"}

# Memory of a server besides weights: on a GPU, activations of a batch of 16,384 tokens and CUDA's own memory.
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
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s*([KMGT]i?|)")


def pick_engine(spec: ModelSpec, settings: Settings, candidates: Sequence[str]) -> str:
    """Returns the first engine that can serve the model. If none can, raises UnsupportedModelError with the reasons."""
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
    """Returns Truss's `resources` for a model, and notes for its user. A card or memory that is too small is replaced.

    Raises ConfigError if no card has enough memory, or if a model is to be divided among more GPUs than there are. An
    `instance_type` decides everything at Baseten, so with one the resources stay as they are.
    """
    if "instance_type" in given:
        return dict(given), []
    if engine == OPENVINO:
        return _cpu_resources(given, model, settings)
    idle = _idle_gpus(str(given["accelerator"]), settings.tensor_parallel_size) if engine == TORCH else []
    if model is None:
        return dict(given), idle
    name, _, count = str(given["accelerator"]).partition(":")
    shares = settings.tensor_parallel_size if engine == TORCH else 1
    card, notes = _card_for(name, model, settings, shares)
    if count not in {"", "1"} and engine != TORCH:
        notes.append(
            f"{ENGINES[engine].title} computes on one GPU; of resources.accelerator {given['accelerator']}, it uses "
            f"one; --engine {TORCH} uses all"
        )
    memory = _memory(given, _HOST_FACTOR * 2 * model.num_params / GIB + _HOST_EXTRA_GIB, _LEAST_GPU_HOST_GIB)
    return {**given, "accelerator": f"{card}:{count}" if count else card, "memory": memory}, notes + idle


def _idle_gpus(accelerator: str, shares: int) -> list[str]:
    """Returns a note if a model divided among `shares` GPUs leaves others idle. Raises ConfigError if it needs more."""
    name, _, given = accelerator.partition(":")
    count = int(given) if given.isdigit() else 1
    if shares > count:
        raise ConfigError(
            f"tensor_parallel_count {shares} needs {shares} GPUs, and resources.accelerator {accelerator} is {count}; "
            f"write {name}:{shares}, or a tensor_parallel_count of at most {count}"
        )
    if 1 < shares < count:
        return [
            f"tensor_parallel_count {shares} uses {shares} of the {count} GPUs of resources.accelerator {accelerator}; "
            f"write {name}:{shares}, or tensor_parallel_count {count}"
        ]
    return []


def gpu_bytes(model: Described, shares: int = 1) -> float:
    """Returns the memory in bytes that a model in bf16 needs on each of the GPUs among which it is divided.

    A quantised model is calibrated in bf16 on one GPU.
    """
    return _GPU_FACTOR * 2 * model.num_params / shares + _GPU_EXTRA_GB * 1e9


def _card_for(name: str, model: Described, settings: Settings, shares: int = 1) -> tuple[str, list[str]]:
    """Returns the card `name` if the model fits, else the smallest one on which it fits, and notes.

    Raises ConfigError if no card is large enough.
    """
    shares = 1 if quantization_of(settings) is not None else shares
    size, cards = gpu_bytes(model, shares) / 1e9, {**_CARD_GB, **_OFFERED_GB}
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
    """Returns processors and memory of a CPU Truss.

    OpenVINO has the weights in memory twice: as stored, and packed, which is in f32 on a processor without bf16. In
    int8 with int8 activations, a processor without VNNI has them a third time.
    """
    num_bytes = 0 if model is None else model.weight_bytes + 4 * model.num_params
    how = quantization_of(settings)
    if model is not None and how is not None:
        num_bytes = model.num_params * (2 * how.bits // 8 if how.bits else 3)
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
    """Returns the larger of the given and the needed memory, in Truss's notation, such as 16Gi."""
    wanted = max(least_gib, 2 * ceil(needed_gib / 2))
    asked = str(given.get("memory") or "")
    return asked if asked and parse_quantity(asked) >= wanted * GIB else f"{wanted}Gi"


def parse_quantity(text: str) -> float:
    """Returns the bytes of a Kubernetes quantity, such as 10Gi. Raises ConfigError for any other text."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"resources.memory {text!r} is not a quantity such as 10Gi")
    return float(match[1]) * _UNITS[match[2]]
