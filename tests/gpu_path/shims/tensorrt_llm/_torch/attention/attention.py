from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensorrt_llm._torch.attention.backends.interface import (
    AttentionMetadata,
    PositionEmbeddingType,
    PredefinedAttentionMask,
    RopeParams,
)
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
        self.rope = self._fused_rope(kwargs)
        common = {"dtype": kwargs["dtype"], "quant_config": config.get_quant_config()}
        self.qkv_proj = Linear(
            kwargs["hidden_size"],
            self.q_size + 2 * self.kv_size,
            bias=kwargs["bias"],
            weights_loading_config=WeightsLoadingConfig(weight_mode=WeightMode.FUSED_QKV_LINEAR),
            **common,
        )
        self.o_proj = Linear(self.q_size, kwargs["hidden_size"], bias=kwargs["dense_bias"], **common)

    def _fused_rope(self, kwargs: dict[str, Any]) -> RopeParams | None:
        """The rotary embedding that the kernel applies; VANILLA, the attention for f32, has none."""
        params = kwargs.get("pos_embd_params")
        if params is None:
            return None
        if kwargs["dtype"] == torch.float32 or params.type != PositionEmbeddingType.rope_gpt_neox:
            raise NotImplementedError("the stand-in's kernel applies rotary embedding as GPT-NeoX does, and not in f32")
        return params.rope

    def _rotate(self, heads: Tensor) -> Tensor:
        """[1, N, L, S] for f32[1, N, L, S]: element i of a head rotates with element i + S / 2, at positions from 0."""
        if self.rope is None:
            return heads
        cos, sin = (table[: heads.shape[-2]] for table in self.rope.tables())
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

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
        heads[:2] = (self._rotate(part).to(query.dtype).float() for part in heads[:2])
        scale = self.head_dim**-0.5 / self.q_scaling
        mixed = F.scaled_dot_product_attention(*heads, is_causal=causal, scale=scale, enable_gqa=True)
        return mixed[0].transpose(0, 1).reshape(len(query), -1).to(query.dtype)
