"""LLM in encode-only mode; each call runs one forward pass on the calling thread."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tensorrt_llm._torch.attention.backends.interface import AttentionMetadata
from tensorrt_llm._torch.model_config import ModelConfig
from tensorrt_llm._torch.models.modeling_utils import MODEL_CLASS_MAPPING
from tensorrt_llm.calls import record


class LLM:
    def __init__(self, model: str, **kwargs: Any) -> None:
        record("LLM", (), {"model": model, **kwargs})
        if not kwargs.get("encode_only"):
            raise NotImplementedError("the stand-in only encodes")
        dtype, folder = getattr(torch, kwargs["dtype"]), Path(model)
        config = ModelConfig.from_pretrained(folder, dtype)
        self.model = MODEL_CLASS_MAPPING[config.pretrained_config.architectures[0]](config)
        self.model.extra_attrs = config.extra_attrs
        files = sorted(folder.glob("*.safetensors"))
        self.model.load_weights({name: value for file in files for name, value in load_file(file).items()})
        self._max_batch_size, self._max_num_tokens = kwargs["max_batch_size"], kwargs["max_num_tokens"]
        self._max_seq_len = min(kwargs["max_seq_len"], self.model.infer_max_seq_len())
        self._graphs = kwargs.get("cuda_graph_config")
        self._busy = threading.Lock()
        self.closed = False
        self._tune()

    def _tune(self) -> None:
        """Writes the autotuner's cache file, as the real constructor does."""
        path = os.environ.get("TLLM_AUTOTUNER_CACHE_PATH")
        if path is not None:
            Path(path).write_text("{}")

    def encode(
        self,
        inputs: Any,
        add_special_tokens: bool = True,
        batch_indexed_model_output: bool = True,
        copy_logits_to_host: bool = True,
        return_raw_logits: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        record("LLM.encode", (inputs,), {"return_raw_logits": return_raw_logits, **model_kwargs})
        if self.closed:
            raise RuntimeError("LLM is shut down or not initialized. Please recreate the LLM object.")
        if model_kwargs and self._graphs is not None:
            raise NotImplementedError("LLM.encode(..., **model_kwargs) is not supported when CUDA graphs are enabled")
        self._check([len(text) for text in inputs])
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two threads call encode at once, which the real LLM does not support")
        try:
            return self._forward([list(text) for text in inputs])[: len(inputs)]
        finally:
            self._busy.release()

    def _check(self, lengths: list[int]) -> None:
        if len(lengths) > self._max_batch_size:
            raise ValueError(f"Batch size ({len(lengths)}) exceeds max_batch_size ({self._max_batch_size}).")
        if sum(lengths) > self._max_num_tokens:
            raise ValueError(f"Total tokens ({sum(lengths)}) exceeds max_num_tokens ({self._max_num_tokens}).")
        if max(lengths) > self._max_seq_len:
            raise ValueError(f"Max sequence length ({max(lengths)}) exceeds max_seq_len ({self._max_seq_len}).")

    def _forward(self, texts: list[list[int]]) -> Tensor:
        """f32[B or more, D]; rows of empty sequences, which pad the batch to the shape of a CUDA graph, come last.

        Surplus tokens belong to no sequence, as in the real package.
        """
        spare = 0
        shape = self._graphs.fit([len(text) for text in texts]) if self._graphs is not None else None
        if shape is not None:
            size, tokens = shape
            spare = tokens - sum(map(len, texts))
            texts = [*texts, *([[]] * (size - len(texts)))]
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.int32)
        ids = torch.tensor([token for text in texts for token in text] + [0] * spare, dtype=torch.int32)
        positions = torch.cat([torch.arange(length, dtype=torch.int32) for length in [*lengths.tolist(), spare]])
        return self.model.forward(
            attn_metadata=AttentionMetadata(lengths),
            input_ids=ids,
            position_ids=positions[None],
            return_context_logits=False,
        )

    def shutdown(self) -> None:
        self.closed = True
