"""The engine on TensorRT-LLM, for NVIDIA GPUs. It runs the model classes of `engines/torch/models`."""
