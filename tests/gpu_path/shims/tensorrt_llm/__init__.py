"""A stand-in for TensorRT-LLM; see ../README.md. The real package has no IS_SHIM."""

from tensorrt_llm.llmapi.llm import LLM

__version__ = "1.4.0rc1"
IS_SHIM = True
__all__ = ["IS_SHIM", "LLM", "__version__"]
