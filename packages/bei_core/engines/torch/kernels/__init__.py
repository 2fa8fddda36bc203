"""What the linear layers and the attention of the models are. TensorRT-LLM's set is `engines/tensorrt_llm/kernels`."""
