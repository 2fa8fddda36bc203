from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensorrt_llm._torch.attention.backends.interface import AttentionMetadata, PredefinedAttentionMask
from tensorrt_llm._torch.modules.linear import Linear, WeightMode, WeightsLoadingConfig
from tensorrt_llm.calls import record


class Attention(nn.Module):
    """Attention within each of the packed sequences: softmax(Q Kᵀ / (sqrt(S) q_scaling)) V."""

    def __init__(self, **kwargs: Any) -> None:
        record("Attention", (), kwargs)
        super().__init__()
        config = kwargs["config"]
        self.num_heads, self.num_key_value_heads = kwargs["num_attention_heads"], kwargs["num_key_value_heads"]
        head_dim = getattr(config.pretrained_config, "head_dim", None)
        self.head_dim = head_dim if isinstance(head_dim, int) else kwargs["hidden_size"] // self.num_heads
        self.q_size, self.kv_size = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        self.q_scaling = kwargs.get("q_scaling", 1.0)
        if kwargs.get("pos_embd_params") is not None:
            raise NotImplementedError("the stand-in has no rotary embedding")
        common = {"dtype": kwargs["dtype"], "quant_config": config.get_quant_config()}
        self.qkv_proj = Linear(
            kwargs["hidden_size"],
            self.q_size + 2 * self.kv_size,
            bias=kwargs["bias"],
            weights_loading_config=WeightsLoadingConfig(weight_mode=WeightMode.FUSED_QKV_LINEAR),
            **common,
        )
        self.o_proj = Linear(self.q_size, kwargs["hidden_size"], bias=kwargs["dense_bias"], **common)

    def split_qkv(self, q: Tensor, k: Any = None, v: Any = None) -> tuple[Tensor, Any, Any]:
        if k is None and v is None:
            return q.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        return q, k, v

    def apply_rope(self, q: Tensor, k: Any, v: Any, position_ids: Tensor) -> tuple[Tensor, Any, Any]:
        return q, k, v

    def forward(
        self,
        position_ids: Tensor | None,
        hidden_states: Tensor,
        attn_metadata: AttentionMetadata,
        attention_mask: PredefinedAttentionMask = PredefinedAttentionMask.CAUSAL,
        **kwargs: Any,
    ) -> Tensor:
        given = {"position_ids": position_ids, "hidden_states": hidden_states, "attn_metadata": attn_metadata}
        record("Attention.forward", (), {**given, "attention_mask": attention_mask, **kwargs})
        q, k, v = self.split_qkv(*self.apply_rope(self.qkv_proj(hidden_states), None, None, position_ids))
        lengths = attn_metadata.seq_lens.tolist()
        spare = len(q) - sum(lengths)
        *parts, _ = zip(*(part.split([*lengths, spare]) for part in (q, k, v)), strict=True)
        causal = attention_mask == PredefinedAttentionMask.CAUSAL
        mixed = [self._text(*part, causal=causal) for part in parts]
        # The kernel does not write the rows of tokens that no sequence owns; NaN shows any use of them.
        return self.o_proj(torch.cat([*mixed, torch.full((spare, self.q_size), float("nan"), dtype=q.dtype)]))

    def _text(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        if not len(query):
            return query
        heads = [part.view(len(part), -1, self.head_dim).transpose(0, 1).float()[None] for part in (query, key, value)]
        scale = self.head_dim**-0.5 / self.q_scaling
        mixed = F.scaled_dot_product_attention(*heads, is_causal=causal, scale=scale, enable_gqa=True)
        return mixed[0].transpose(0, 1).reshape(len(query), -1).to(query.dtype)
