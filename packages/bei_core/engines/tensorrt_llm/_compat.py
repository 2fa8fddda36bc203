"""TensorRT-LLM's names, wherever the installed version keeps them, and the version that all of this is written for.

Only the names below are used. Norms, rotary embedding, pooling and heads are our own torch: what is not used cannot
differ, and what is ours is tested on any machine (docs/decisions/012-tensorrt-llm.md).
"""

from __future__ import annotations

import importlib
from typing import Any

from bei_core.errors import EngineUnavailableError

VERSION = "1.4.0rc1"

# Newest first: 1.4's tree, then that of 1.3.
_PLACES: dict[str, tuple[str, ...]] = {
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

    Raises EngineUnavailableError where the package is missing or has moved it.
    """
    for place in _PLACES[name]:
        try:
            return getattr(importlib.import_module(place), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise EngineUnavailableError(
        f"tensorrt_llm has no {name} in {' or '.join(_PLACES[name])}; the engine is written for {VERSION}: "
        f"pip install tensorrt-llm=={VERSION} --extra-index-url https://pypi.nvidia.com"
    )


def check_version() -> None:
    """Raises EngineUnavailableError for any version but the supported one, because `encode()` is a prototype there."""
    try:
        found = importlib.import_module("tensorrt_llm").__version__
    except Exception as fault:  # its libraries want a driver, CUDA, MPI: whatever is missing has its own error
        raise EngineUnavailableError(f"tensorrt_llm cannot be imported here: {fault}") from fault
    if found != VERSION:
        raise EngineUnavailableError(
            f"tensorrt_llm {found} is installed and the engine is written for {VERSION}: "
            f"pip install tensorrt-llm=={VERSION} --extra-index-url https://pypi.nvidia.com, or use the image of "
            "docs/gpu.md"
        )
