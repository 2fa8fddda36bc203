from tensorrt_llm.llmapi.llm_args import EncodeCudaGraphConfig

__all__ = ["EncodeCudaGraphConfig"]
