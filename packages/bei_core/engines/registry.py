"""Which engine runs, where the settings leave it open: TensorRT-LLM on a GPU that it supports, else the CPU's."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from bei_core.errors import EngineUnavailableError

log = logging.getLogger(__name__)

CPU, GPU = "openvino", "tensorrt_llm"
ENGINES = (CPU, GPU)

_INSTALL = {
    CPU: "pip install openvino",
    GPU: "pip install tensorrt-llm --extra-index-url https://pypi.nvidia.com, or use the image in docs/gpu.md",
}

# Compute capability of the oldest card that TensorRT-LLM's PyTorch backend supports: Ampere (its support matrix).
_OLDEST = (8, 0)
_TIMEOUT_S = 10.0
_CARD = re.compile(r"(?P<name>.+),\s*(?P<major>\d+)\.(?P<minor>\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card of this machine, as its driver names it."""

    name: str  # "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int]  # (9, 0)


def choose(engine: str, *, to_run: bool = True) -> str:
    """The name of the engine that `auto` or a name stands for.

    Raises EngineUnavailableError for a named one that is unknown, or, unless it is only to be built, cannot run here.
    """
    if engine == "auto":
        return _best()
    if engine not in ENGINES:
        raise EngineUnavailableError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    if to_run:
        require(engine)
    return engine


def require(engine: str) -> None:
    """Raises EngineUnavailableError with the install command where an engine's package is missing."""
    if not _is_installed(engine):
        raise EngineUnavailableError(f"the {engine} engine needs the package {engine}: {_INSTALL[engine]}")


def find_gpu() -> Gpu | None:
    """The first NVIDIA card that CUDA may use (CUDA_VISIBLE_DEVICES), as the driver names it.

    Unless CUDA_DEVICE_ORDER is PCI_BUS_ID, CUDA counts cards by speed; nvidia-smi always does by bus. So this may be
    another card on a machine of two kinds. None without a driver or where all cards are hidden, as any word hides them
    that is no card's (SLURM sets NoDevFiles), and with a warning where the driver names none.
    """
    command = shutil.which("nvidia-smi")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        first = "0"  # a UUID may be shortened or a MIG's; machines of two kinds of cards are rare
    if command is None or not first.isdigit():
        return None
    query = [command, "-i", first, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as fault:
        said = str(fault)
    found = _CARD.match(said)
    if found is None:  # a broken driver, too, leaves a card idle
        reason = said.strip().partition("\n")[0] or "it says nothing"
        log.warning("nvidia-smi is here and names no card, so no GPU is used: %s", reason)
        return None
    return Gpu(found["name"], (int(found["major"]), int(found["minor"])))


def _best() -> str:
    """TensorRT-LLM where it can run; the CPU's engine else, with a warning where that leaves a GPU idle."""
    gpu = find_gpu()
    if gpu is None:
        return CPU
    if gpu.capability < _OLDEST:
        reason = "TensorRT-LLM supports compute capability 8.0 (Ampere) and newer"
    elif not _is_installed(GPU):
        reason = f"TensorRT-LLM is not installed: {_INSTALL[GPU]}"
    else:
        return GPU
    major, minor = gpu.capability
    log.warning(
        "%s (compute capability %d.%d) is here and is NOT used, the CPU is: %s. With engine: openvino this is not said",
        gpu.name,
        major,
        minor,
        reason,
    )
    return CPU


def _is_installed(engine: str) -> bool:
    return importlib.util.find_spec(engine) is not None
