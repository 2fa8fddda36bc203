"""A stand-in for TensorRT-LLM; see ../README.md. IS_SHIM tells it from the real one."""

from tensorrt_llm.llmapi.llm import LLM

__version__ = "1.4.0rc1"
IS_SHIM = True
__all__ = ["IS_SHIM", "LLM", "__version__"]
