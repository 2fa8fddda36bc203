"""Imports classes and functions of TensorRT-LLM, and checks that its version is the supported one.

The engine uses only the names in `_MODULES`, because names and modules change between versions of TensorRT-LLM. Norms,
rotary embedding, pooling and heads are code of this project in torch, so they can be tested without a GPU and do not
change with TensorRT-LLM (docs/decisions/012-tensorrt-llm.md).
"""

from __future__ import annotations

import importlib
from typing import Any

from bei_core.errors import EngineUnavailableError

VERSION = "1.4.0rc1"
_INSTALL = f"pip install tensorrt-llm=={VERSION} --extra-index-url https://pypi.nvidia.com"

# The module of each name.
_MODULES = {
    "LLM": "tensorrt_llm",
    "EncodeCudaGraphConfig": "tensorrt_llm.llmapi",
    "Attention": "tensorrt_llm._torch.attention.attention",
    "PredefinedAttentionMask": "tensorrt_llm._torch.attention.backends.interface",
    "PositionalEmbeddingParams": "tensorrt_llm._torch.attention.backends.interface",
    "PositionEmbeddingType": "tensorrt_llm._torch.attention.backends.interface",
    "RopeParams": "tensorrt_llm._torch.attention.backends.interface",
    "RotaryScalingType": "tensorrt_llm.functional",
    "Linear": "tensorrt_llm._torch.modules.linear",
    "WeightMode": "tensorrt_llm._torch.modules.linear",
    "WeightsLoadingConfig": "tensorrt_llm._torch.modules.linear",
    "register_auto_model": "tensorrt_llm._torch.models.modeling_utils",
}


def upstream(name: str) -> Any:
    """Returns the class or function `name` of TensorRT-LLM; `name` is a key of `_MODULES`.

    Raises EngineUnavailableError if the package is not installed or if the module does not have the name.
    """
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except (ModuleNotFoundError, AttributeError) as fault:
        raise EngineUnavailableError(
            f"tensorrt_llm has no {name} in {_MODULES[name]}; the engine is written for {VERSION}: {_INSTALL}"
        ) from fault


def check_version() -> None:
    """Checks that TensorRT-LLM can be imported and has exactly the supported version.

    Raises EngineUnavailableError if not. Other versions are refused because `LLM.encode` is a prototype API.
    """
    try:
        found = importlib.import_module("tensorrt_llm").__version__
    except Exception as fault:  # a missing driver, CUDA library or MPI raises different types of errors
        raise EngineUnavailableError(f"tensorrt_llm cannot be imported here: {fault}") from fault
    if found != VERSION:
        raise EngineUnavailableError(
            f"tensorrt_llm {found} is installed and the engine is written for {VERSION}: {_INSTALL}, or use the image "
            "of docs/gpu.md"
        )
