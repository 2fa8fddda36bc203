"""The classes that config.json names, and TensorRT-LLM's contract with them.

`forward` gets packed texts and gives f32[B, D]. Token ids carry two more facts of each token, `pack_ids`: extra inputs
are refused beside CUDA graphs by some versions, and an id needs no version's help.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from bei_core.engines.tensorrt_llm._compat import upstream
from bei_core.engines.tensorrt_llm.artifact import TOP, Facts, class_names
from bei_core.engines.tensorrt_llm.models.bert import BertTransformer
from bei_core.engines.tensorrt_llm.models.decoder import DecoderTransformer
from bei_core.engines.tensorrt_llm.models.layers import Config, Weights, top_tensors
from bei_core.engines.tensorrt_llm.models.pooling import Spans
from bei_core.engines.tensorrt_llm.models.top import make_top


class PackedModel(nn.Module):
    """A transformer and what stands on top of it."""

    def __init__(self, model_config: Any) -> None:
        super().__init__()
        self.model_config = model_config
        self.facts = msgspec.convert(model_config.pretrained_config.bei, Facts)
        dtype = model_config.pretrained_config.torch_dtype or torch.bfloat16
        config = Config(model_config, dtype, self.facts.quantized)
        make = BertTransformer if self.facts.is_bert else DecoderTransformer
        self.transformer = make(self.facts, config)
        self.top = make_top(self.facts)

    @property
    def config(self) -> Any:
        """Hugging Face's config, which TensorRT-LLM reads here."""
        return self.model_config.pretrained_config

    def infer_max_seq_len(self) -> int:
        """The longest text, in tokens."""
        return self.facts.spec.max_seq_len

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes a checkpoint's tensors, under whichever prefix they are. Raises CheckpointError naming one at fault."""
        found = Weights(weights, anchor=self.facts.anchor, prefixes=self.facts.prefixes)
        self.transformer.load(found)
        self.top.load(dict(top_tensors(weights, TOP)), next(self.transformer.parameters()).device)

    @torch.inference_mode()
    def forward(
        self,
        attn_metadata: Any,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_context_logits: bool = False,
        **unused: Any,
    ) -> Tensor:
        """f32[B, D] of i32[T] ids as `pack_ids` gives them, and positions i32[1, T] that count from 0 in each text."""
        if input_ids is None or position_ids is None:
            raise ValueError("this is a bug: ids and positions are what the model is made for")
        ids, type_ids, kept = unpack_ids(input_ids, self.facts.spec.vocab_size)
        # A text that only fills up a CUDA graph may be longer than the tables of positions.
        position_ids = position_ids.clamp(max=self.facts.spec.max_seq_len - 1)
        hidden = self.transformer(ids, type_ids, position_ids, attn_metadata)
        return self.top(hidden, ids, Spans.of(attn_metadata.seq_lens_cuda, kept))


def unpack_ids(packed: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and types i32[T], and bool[T], whether a token counts in pooling, of what `pack_ids` made."""
    facts = packed // vocab_size
    return packed % vocab_size, facts % 2, facts < 2


def register() -> None:
    """Makes TensorRT-LLM know our classes, each family's as embedding and as sequence classification."""
    for name in class_names():
        upstream("register_auto_model")(name)(PackedModel)
