"""All engines, and the choice of one for `engine: auto`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.build import Builder, reason_not_to_build
from bei_core.errors import EngineUnavailableError
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)

OPENVINO, TENSORRT_LLM, TORCH = "openvino", "tensorrt_llm", "torch"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of this machine, as its driver describes it."""

    name: str  # "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int]  # (9, 0)


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One engine of the registry. Its module has `build.py` and `engine.py`, as described in `engines.base`."""

    name: str  # also the name of the Python package that it needs to run
    title: str  # the name in texts for users
    module: str
    install: str  # the command that installs the package
    builds_without_package: bool = False
    min_capability: tuple[int, int] | None = None  # for `auto`: of the oldest supported card; None if it is for CPUs
    cards: str = ""  # the same in words
    runs_without_gpu: bool = False  # also on older cards, if the settings name this engine
    takes_devices: bool = False  # the settings `devices` and `tensor_parallel_size`
    trial: str = ""  # a program in Python that fails if the installed package cannot use the GPU

    def is_installed(self) -> bool:
        """Whether the engine's package is installed."""
        return importlib.util.find_spec(self.name) is not None

    def reason_against(self, gpu: Gpu) -> str | None:
        """Why `auto` does not choose the engine for a GPU; None if it may. The trial is not run."""
        if self.min_capability is not None and gpu.capability < self.min_capability:
            return f"{self.title} supports {self.cards}"
        return None if self.is_installed() else f"{self.title} is not installed: {self.install}"

    def fault(self) -> str | None:
        """Why the installed package cannot use the GPU, found by the trial in a process of its own; None if it can."""
        reason = _run_trial(self.trial) if self.trial else None
        return None if reason is None else f"{self.title} cannot use it: {reason}"


# `auto` takes the first engine with `min_capability` that can run the model on this machine's GPU, else the CPU engine.
ENGINES = {
    kind.name: kind
    for kind in (
        EngineKind(OPENVINO, "OpenVINO", "bei_core.engines.openvino", "pip install openvino", runs_without_gpu=True),
        EngineKind(
            TENSORRT_LLM,
            "TensorRT-LLM",
            "bei_core.engines.tensorrt_llm",
            "pip install tensorrt-llm==1.4.0rc1 --extra-index-url https://pypi.nvidia.com, or the image in docs/gpu.md",
            builds_without_package=True,
            min_capability=(8, 0),  # of its PyTorch backend, by its support matrix
            cards="compute capability 8.0 (Ampere) and newer",
        ),
        EngineKind(
            TORCH,
            "torch",
            "bei_core.engines.torch",
            "pip install 'bei-core[torch]'",
            builds_without_package=True,
            min_capability=(8, 0),  # of FlashAttention and bf16
            cards="compute capability 8.0 (Ampere) and newer",
            runs_without_gpu=True,
            takes_devices=True,
            trial="import torch; torch.cuda.init()",  # fails for a wheel for CPUs, and for a driver that is too old
        ),
    )
}

_TIMEOUT_S = 10.0
_TRIAL_TIMEOUT_S = 120.0  # to import torch from a slow disk
_CARD = re.compile(r"(?P<name>.+),\s*(?P<major>\d+)\.(?P<minor>\d+)$", re.MULTILINE)


def candidates(engine: str, *, with_devices: bool = False, to_run: bool = True) -> list[str]:
    """The names of the engines for the setting `engine`, the preferred one first.

    For `auto`, they are those that can run on this machine's GPU and then, if it is installed, the CPU engine, for
    models that they do not support. `with_devices`, they are those that have the settings `devices` and
    `tensor_parallel_size`. If none can, it is the CPU engine alone. Raises EngineUnavailableError for an unknown name.
    With `to_run`, also if the engine's package is missing.
    """
    if engine == "auto":
        return _usable(with_devices=with_devices)
    _kind(engine)
    if to_run:
        require(engine)
    return [engine]


def require(engine: str) -> None:
    """Raise EngineUnavailableError with the install command if an engine's package is missing."""
    kind = _kind(engine)
    if not kind.is_installed():
        raise EngineUnavailableError(f"the {engine} engine needs the package {engine}: {kind.install}")


def load_builder(engine: str) -> Builder:
    """The module that builds an engine. Raises EngineUnavailableError, with the install command, if it cannot here."""
    kind = _kind(engine)
    if not kind.builds_without_package:
        require(engine)
    return cast("Builder", importlib.import_module(f"{kind.module}.build"))


def load_loader(engine: str) -> Callable[..., Engine]:
    """The function `load` of an engine's module. Raises EngineUnavailableError if the engine's package is missing."""
    require(engine)
    loader: Callable[..., Engine] = importlib.import_module(f"{_kind(engine).module}.engine").load
    return loader


def reason_not_to_serve(engine: str, spec: ModelSpec, settings: Settings) -> str | None:
    """Why an engine cannot serve a model with these settings, on any machine; None if it can."""
    try:
        return reason_not_to_build(load_builder(engine), spec, settings)
    except EngineUnavailableError as error:
        return str(error)


def find_gpu() -> Gpu | None:
    """The first NVIDIA GPU that CUDA may use (CUDA_VISIBLE_DEVICES), as nvidia-smi describes it.

    None without a driver, and if the variable hides all GPUs, as any value does that names no GPU (SLURM sets
    NoDevFiles). None with a warning if the driver lists no GPU. If the GPUs differ, this may not be the GPU that CUDA
    uses: nvidia-smi orders GPUs by bus, and CUDA by speed unless CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    command = shutil.which("nvidia-smi")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        first = "0"  # nvidia-smi may not know the UUID (shortened, or of a MIG); most machines have equal GPUs
    if command is None or not first.isdigit():
        return None
    query = [command, "-i", first, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        output = str(error)
    found = _CARD.match(output)
    if found is None:  # warn, because a GPU may be idle for a broken driver
        reason = output.strip().partition("\n")[0] or "it prints nothing"
        log.warning("nvidia-smi lists no GPU, so none is used: %s", reason)
        return None
    return Gpu(found["name"], (int(found["major"]), int(found["minor"])))


def _usable(*, with_devices: bool) -> list[str]:
    """The engines of `candidates` for `auto`; there is a warning if there is a GPU and none of them can use it."""
    gpu = find_gpu()
    if gpu is None:
        return [OPENVINO]
    reasons, usable = [], list[str]()
    for kind in (kind for kind in ENGINES.values() if kind.min_capability is not None):
        reason = kind.reason_against(gpu)
        if with_devices and not kind.takes_devices:
            reason = f"{kind.title} has no settings devices and tensor_parallel_size"
        if reason is None and not usable:  # without a trial after the first, because TensorRT-LLM needs torch
            reason = kind.fault()
        if reason is None:
            usable.append(kind.name)
        else:
            reasons.append(reason)
    if usable:
        return [*usable, OPENVINO] if _kind(OPENVINO).is_installed() and not with_devices else usable
    log.warning(
        "%s (compute capability %d.%d) is not used, and the CPU engine runs instead: %s; set engine=%s to silence this",
        gpu.name,
        *gpu.capability,
        "; ".join(reasons),
        OPENVINO,
    )
    return [OPENVINO]


@functools.cache
def _run_trial(program: str) -> str | None:
    """The last line that a program in Python prints if it fails; None if it succeeds. It has this sys.path."""
    path = [folder for folder in sys.path if isinstance(folder, str)]
    command = [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path[:] = {path!r}; {program}"]
    try:
        subprocess.run(command, capture_output=True, timeout=_TRIAL_TIMEOUT_S, check=True)  # noqa: S603
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None


def _kind(engine: str) -> EngineKind:
    kind = ENGINES.get(engine)
    if kind is None:
        raise EngineUnavailableError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    return kind
