"""Loads a model, or a share of it, from an engine folder onto a device."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bei_core.checkpoint.tensors import Tensors, entries
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import TUNED
from bei_core.engines.torch.folder import DTYPES, WEIGHTS, Facts, read_facts
from bei_core.engines.torch.kernels.base import Rank
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.kernels.varlen import with_own_code
from bei_core.engines.torch.models.layers import run_layer
from bei_core.engines.torch.models.model import Model
from bei_core.errors import EngineUnavailableError
from bei_core.tasks import Tokens

log = logging.getLogger(__name__)

# One text, to try a model with. torch compiles a graph of its own for sizes of 0 and 1, and another if the number of
# tokens equals a size of the model, such as its number of heads.
TRIAL = Batch.pack([Tokens(*np.zeros((2, 11), np.int32))])
# Tokens of more than one block of FlexAttention's mask (128), because torch compiles another kernel for several blocks.
_LARGE_TRIAL = Batch.pack([Tokens(*np.zeros((2, 11), np.int32))] * 13)

# Torch's dtype for tensors that `Tensors` returns as integers, because NumPy does not have their dtype.
_VIEWS = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}

# Types of devices on which layers may be compiled. Tests set it to {"cpu"}.
COMPILED_ON = {"cuda"}

# Environment variables for the folders in which torch and Triton save kernels. They belong to the process, so one model
# at a time is compiled. Torch sets them, too: what the user has set is what they are before.
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_USER_SET_CACHE = any(name in os.environ for name in _CACHES)
_COMPILING = threading.Lock()

_MIN_FP8 = (8, 9)  # the lowest compute capability with matmuls in fp8 (e4m3): Ada and Hopper


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read and copied to the device at each access."""

    def __init__(self, tensors: Tensors, device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def __getitem__(self, name: str) -> Tensor:
        value = torch.from_numpy(np.array(self._tensors.raw(name)))
        dtype = _VIEWS.get(self._tensors.dtype(name))
        return (value if dtype is None else value.view(dtype)).to(self._device)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def load_folder(
    folder: Path, precision: str, device: torch.device, rank: Rank | None = None, *, may_compile: bool = True
) -> Model:
    """Loads the model of an engine folder onto a device, or the share of `rank`; FlexAttention needs `may_compile`.

    Raises EngineUnavailableError if the device cannot run the model, and CheckpointError for a tensor that is missing
    or has the wrong shape.
    """
    try:
        path = folder / WEIGHTS  # also of a model whose own weights are in the folder of a module
        stored = StoredTensors(Tensors(entries(path), source=str(path)), device)
        kernels = Kernels(getattr(torch, DTYPES[precision]), rank, may_compile=may_compile)
        return load_model(read_facts(folder), stored, kernels, device)
    except RuntimeError as error:  # too little memory, or a driver of the wrong version
        raise EngineUnavailableError(f"torch cannot load {folder} on {device}: {error}") from error


def load_model(facts: Facts, tensors: Mapping[str, Tensor], kernels: Kernels, device: torch.device) -> Model:
    """Returns a model with these tensors on the device."""
    with device:
        model = Model(facts, kernels)
    model.load(tensors)
    return model.to(device).eval()


def check_gpu(precision: str, device: torch.device) -> None:
    """Checks that a device supports the precision; a CPU supports every precision.

    Raises EngineUnavailableError if not, with the names of GPUs that support it.
    """
    if device.type != "cuda" or supports(precision, device):
        return
    major, minor = torch.cuda.get_device_capability(device)
    raise EngineUnavailableError(
        f"{precision} needs a GPU of compute capability 8.9 (L4, L40S, H100 and newer); "
        f"{torch.cuda.get_device_name(device)} has {major}.{minor}. For this GPU, build with quantization_type no_quant"
    )


def supports(precision: str, device: torch.device | None = None) -> bool:
    """Whether a GPU (by default the current one) has matmuls in this precision; false if torch finds no GPU."""
    if not torch.cuda.is_available():
        return False
    return precision != "fp8" or bool(torch.cuda.get_device_capability(device) >= _MIN_FP8)


def reason_without_gpu() -> str:
    """Returns why torch finds no GPU, in torch's words, such as that the driver is too old or missing."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: this torch is built for CPUs
        return str(error).partition(". ")[0]
    return "it does not say why"


def tuning_folder(folder: Path, name: str = "") -> Path | None:
    """Returns a folder in an engine folder for what is made at its first start on a GPU, such as compiled kernels.

    None if the engine folder is not writable.
    """
    made = folder / TUNED / name
    try:
        made.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.info(
            "engine folder %s is not writable (%s); kernels are saved in the folder for temporary files",
            folder,
            error.strerror,
        )
        return None
    return made


@contextmanager
def _saved_kernels(folder: Path) -> Iterator[None]:
    """While the block runs, torch saves the kernels that it compiles in the engine folder, or takes them from there.

    Not if the engine folder is not writable, or if the user has set the folder for all models.
    """
    cache = None if _USER_SET_CACHE else tuning_folder(folder, "torch")
    with _COMPILING:
        before = {name: os.environ.pop(name, None) for name in _CACHES} if cache is not None else {}
        if cache is not None:
            os.environ[_CACHES[0]] = str(cache)  # torch derives the second from the first
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def compile_layers(model: Model, folder: Path) -> None:
    """Makes torch compile each layer into fused kernels for any number of tokens, and runs the model to do so.

    On a GPU only. If the compilation fails, the layers run without it and a warning is logged.
    """
    if model.device.type not in COMPILED_ON:
        return
    model.transformer.run = torch.compile(with_own_code(run_layer), dynamic=True)
    try:
        with _saved_kernels(folder):
            model.compute(TRIAL)
            model.compute(_LARGE_TRIAL)
    except Exception as error:  # of many types: there is no compiler, or torch cannot make a kernel
        log.warning("layers are not compiled and slower, because torch.compile fails: %s", error)
        del model.transformer.run
