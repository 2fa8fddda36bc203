"""Imports from TensorRT-LLM, from whichever module has them, and the one supported version.

Only the names below are used. Norms, rotary embedding, pooling and heads are our own code in torch, so they are tested
on any machine and do not change with TensorRT-LLM (docs/decisions/012-tensorrt-llm.md).
"""

from __future__ import annotations

import importlib
from typing import Any

from bei_core.errors import EngineUnavailableError

VERSION = "1.4.0rc1"

# The modules that may have each name: that of version 1.4 first, then that of 1.3.
_MODULES: dict[str, tuple[str, ...]] = {
    "LLM": ("tensorrt_llm",),
    "EncodeCudaGraphConfig": ("tensorrt_llm.llmapi", "tensorrt_llm.llmapi.llm_args"),
    "Attention": ("tensorrt_llm._torch.attention.attention", "tensorrt_llm._torch.modules.attention"),
    "PredefinedAttentionMask": (
        "tensorrt_llm._torch.attention.backends.interface",
        "tensorrt_llm._torch.attention_backend.interface",
    ),
    "Linear": ("tensorrt_llm._torch.modules.linear",),
    "WeightMode": ("tensorrt_llm._torch.modules.linear",),
    "WeightsLoadingConfig": ("tensorrt_llm._torch.modules.linear",),
    "register_auto_model": ("tensorrt_llm._torch.models.modeling_utils",),
}


def upstream(name: str) -> Any:
    """A class or function of TensorRT-LLM.

    Raises EngineUnavailableError if the package is not installed or none of the modules has the name.
    """
    for module in _MODULES[name]:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise EngineUnavailableError(
        f"tensorrt_llm has no {name} in {' or '.join(_MODULES[name])}; the engine is written for {VERSION}: "
        f"pip install tensorrt-llm=={VERSION} --extra-index-url https://pypi.nvidia.com"
    )


def check_version() -> None:
    """Raises EngineUnavailableError for any version but the supported one, because `LLM.encode` is a prototype API."""
    try:
        found = importlib.import_module("tensorrt_llm").__version__
    except Exception as fault:  # a missing driver, CUDA library or MPI each raises an error of its own
        raise EngineUnavailableError(f"tensorrt_llm cannot be imported here: {fault}") from fault
    if found != VERSION:
        raise EngineUnavailableError(
            f"tensorrt_llm {found} is installed and the engine is written for {VERSION}: "
            f"pip install tensorrt-llm=={VERSION} --extra-index-url https://pypi.nvidia.com, or use the image of "
            "docs/gpu.md"
        )
