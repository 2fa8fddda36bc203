"""Loads a model, or a share of it, from an engine folder onto a device."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bei_core.checkpoint import Tensors, resolve
from bei_core.engines.manifest import TUNED
from bei_core.engines.torch.folder import DTYPES, Facts, read_facts
from bei_core.engines.torch.kernels.base import Rank
from bei_core.engines.torch.kernels.torch import TorchKernels
from bei_core.engines.torch.models.model import Model
from bei_core.errors import EngineUnavailableError

log = logging.getLogger(__name__)

# What `Tensors` has as integers, because NumPy lacks the type.
_VIEWS = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}

# The compute capability that a precision needs: e4m3 matmuls came with Ada and Hopper, e2m1 with Blackwell.
_MIN_CAPABILITY = {"fp8": (8, 9), "fp4": (10, 0)}


class StoredTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors, each copied to the device when it is asked for, and more that are in memory."""

    def __init__(self, tensors: Tensors, device: torch.device, more: Mapping[str, Tensor] | None = None) -> None:
        self._tensors, self._device, self._more = tensors, device, more or {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._more:
            return self._more[name]
        value = torch.from_numpy(np.array(self._tensors.raw(name)))
        dtype = _VIEWS.get(self._tensors.dtype(name))
        return (value if dtype is None else value.view(dtype)).to(self._device)

    def __contains__(self, name: object) -> bool:
        return name in self._more or name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self._tensors, self._more)

    def __len__(self) -> int:
        return len(self._tensors) + len(self._more)


def load_folder(folder: Path, precision: str, device: torch.device, rank: Rank | None = None) -> Model:
    """The model in an engine folder. Raises EngineUnavailableError if it does not fit the device, CheckpointError."""
    try:
        model = load_model(
            read_facts(folder), StoredTensors(resolve(str(folder)).tensors(), device), DTYPES[precision], device, rank
        )
        if _is_compiled(device) and rank is None:
            _compile(model, folder)
    except RuntimeError as error:  # no memory, a driver that does not fit
        raise EngineUnavailableError(f"torch cannot load {folder} on {device}: {error}") from error
    return model


def load_model(
    facts: Facts, tensors: Mapping[str, Tensor], dtype: str, device: torch.device, rank: Rank | None = None
) -> Model:
    """A model of these tensors, in `dtype`."""
    with device:
        model = Model(facts, TorchKernels(getattr(torch, dtype), rank))
    model.load(tensors)
    model.to(device).eval()
    return model


def check_gpu(precision: str, device: torch.device) -> None:
    """Raises EngineUnavailableError, naming GPUs that would do, if a GPU does not support the precision."""
    if device.type != "cuda" or supports(precision, device):
        return
    needed, found = _MIN_CAPABILITY[precision], torch.cuda.get_device_capability(device)
    raise EngineUnavailableError(
        f"{precision} needs a GPU of compute capability {needed[0]}.{needed[1]} (fp8: L4, L40S, H100 and newer; fp4: "
        f"B200 and newer); {torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}. For this GPU, build with "
        "quantization_type no_quant"
    )


def supports(precision: str, device: torch.device | None = None) -> bool:
    """Whether a GPU, by default the first, has matmuls in a precision; false without GPUs."""
    if not torch.cuda.is_available():
        return False
    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return capability >= _MIN_CAPABILITY.get(precision, (0, 0))


def _is_compiled(device: torch.device) -> bool:
    """Whether layers are compiled: on a GPU unless BEI_TORCH_COMPILE is 0; on a CPU if it is 1, for tests."""
    return os.environ.get("BEI_TORCH_COMPILE", "1" if device.type == "cuda" else "0") != "0"


def _compile(model: Model, folder: Path) -> None:
    """Lets torch compile each layer at its first run, with fused kernels for any number of tokens.

    The kernels are saved in the engine folder, or in the temporary folder if that is read-only.
    """
    cache = folder / TUNED / "torch"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    except OSError as error:
        log.info(
            "engine folder %s is not writable (%s); compiled kernels are saved in %s",
            folder,
            error.strerror,
            tempfile.gettempdir(),
        )
    for layer in model.transformer.layers:
        layer.compile(dynamic=True)
    blank = torch.zeros(9, dtype=torch.int32)  # one text of two tokens
    blank[8] = 2
    try:
        model.compute(blank, 2, 2, False)
    except Exception as error:  # torch has several kinds of them: no compiler, a kernel that cannot be made
        log.warning("layers are not compiled and slower, because torch.compile fails: %s", error)
        for layer in model.transformer.layers:
            layer._compiled_call_impl = None
