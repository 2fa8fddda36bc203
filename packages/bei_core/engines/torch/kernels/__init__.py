"""Linear layers and attention for the models: the protocol, and the set in torch.

The set of TensorRT-LLM is in `engines/tensorrt_llm/kernels.py`.
"""
