"""The engine on PyTorch, for NVIDIA GPUs. The engine on TensorRT-LLM has the same model classes."""
