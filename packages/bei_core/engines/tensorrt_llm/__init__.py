"""The GPU engine, on TensorRT-LLM."""
