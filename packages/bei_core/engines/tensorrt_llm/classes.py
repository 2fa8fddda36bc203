"""`PackedModel`, the model class that TensorRT-LLM loads and calls. config.json names it under `architectures`.

`forward` takes packed sequences and returns f32[B, D]. The token ids also contain the token types and the pooling mask
(`engine.pack_ids`), because with CUDA graphs, some versions of TensorRT-LLM accept no inputs besides token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from bei_core.engines.tensorrt_llm.kernels import TensorRtLlmKernels
from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.models.model import Model
from bei_core.engines.torch.models.sequences import Sequences


class PackedModel(nn.Module):
    """A transformer with pooling and heads, in the form that TensorRT-LLM expects of a model class."""

    def __init__(self, model_config: Any) -> None:
        super().__init__()
        self.model_config = model_config
        self.facts = msgspec.convert(model_config.pretrained_config.bei, Facts)
        dtype = model_config.pretrained_config.torch_dtype or torch.bfloat16
        self.model = Model(self.facts, TensorRtLlmKernels(model_config, dtype, self.facts))

    @property
    def config(self) -> Any:
        """The content of config.json, as a config object of transformers. TensorRT-LLM reads this attribute."""
        return self.model_config.pretrained_config

    def infer_max_seq_len(self) -> int:
        """Returns the maximum length of a sequence in tokens. TensorRT-LLM calls this method."""
        return self.facts.spec.max_seq_len

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Loads the tensors of model.safetensors; `weights` has them by name.

        Raises CheckpointError if a tensor is missing or has the wrong shape.
        """
        self.model.load(weights)

    @torch.inference_mode()
    def forward(self, attn_metadata: Any, input_ids: Tensor, position_ids: Tensor, **unused: Any) -> Tensor:
        """Returns f32[B, D], one row for each sequence.

        `input_ids` i32[T] are made by `pack_ids`. `position_ids` i32[1, T] count from 0 in each sequence.
        """
        ids, type_ids, pooled = unpack_ids(input_ids, self.facts.spec.vocab_size)
        # The tokens that pad a batch to the size of a CUDA graph may have any position, also one out of range.
        positions = position_ids.reshape(-1).clamp(0, self.facts.spec.max_seq_len - 1)
        lengths = attn_metadata.seq_lens_cuda
        sequences = Sequences(ids, type_ids, positions, pooled, lengths, attn_metadata.seq_lens, attn_metadata)
        return self.model.rows(sequences)


def unpack_ids(packed: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (ids i32[T], types i32[T], pooling mask bool[T]), from the i32[T] that `engine.pack_ids` made."""
    flags = packed // vocab_size
    return packed % vocab_size, flags % 2, flags < 2
