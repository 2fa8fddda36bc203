"""The engine on PyTorch, for NVIDIA GPUs. The engine on TensorRT-LLM uses the same model classes (`models/`)."""
