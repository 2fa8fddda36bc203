"""TensorRT-LLM's set of kernels for our models: its Linear and Attention, configured by its own model config."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bei_core.engines.tensorrt_llm._compat import upstream
from bei_core.engines.torch.kernels.base import AttentionSizes, Rank, fits_fp8
from bei_core.engines.torch.kernels.torch import Attention, NormAndRope, load_attention
from bei_core.engines.torch.models.layers import Rope
from bei_core.engines.torch.models.sequences import Sequences

_Linear, _WeightMode, _WeightsLoadingConfig = (upstream(n) for n in ("Linear", "WeightMode", "WeightsLoadingConfig"))
_Attention: Any = upstream("Attention")
_Mask: Any = upstream("PredefinedAttentionMask")
_MODES = {None: "VANILLA", "qkv": "FUSED_QKV_LINEAR", "gate_up": "FUSED_GATE_UP_LINEAR"}


class TensorRtLlmKernels:
    """See `torch.kernels.base.Kernels`."""

    def __init__(self, model_config: Any, dtype: torch.dtype, quantized: Sequence[str]) -> None:
        """`quantized` are the parts of the transformer whose linear layers are quantised."""
        self.model_config, self.dtype, self.quantized = model_config, dtype, frozenset(quantized)

    rank = Rank()

    def linear(
        self, size_in: int, size_out: int, part: str, *, bias: bool, fused: str | None = None, split: str | None = None
    ) -> Any:
        """TensorRT-LLM's Linear."""
        return _Linear(
            size_in,
            size_out,
            bias=bias,
            dtype=self.dtype,
            quant_config=self.model_config.quant_config
            if part in self.quantized and fits_fp8(size_in, size_out)
            else None,
            weights_loading_config=_WeightsLoadingConfig(weight_mode=getattr(_WeightMode, _MODES[fused])),
        )

    def attention(self, sizes: AttentionSizes, rope: Any, layer: int, score_bias: Any = None) -> Any:
        """TensorRT-LLM's Attention, or ours for a layer with soft-capped scores, a window or biases of scores."""
        if sizes.soft_cap is not None or sizes.window is not None or score_bias is not None:
            return Attention(sizes, rope, self, score_bias)
        return PackedAttention(sizes, rope, self, layer)

    def attention_config(self, sizes: AttentionSizes) -> Any:
        """The config for TensorRT-LLM's Attention; without quantisation if its part is not a quantised one."""
        if sizes.part in self.quantized:
            return self.model_config
        plain = copy.copy(self.model_config)
        plain.quant_config = type(self.model_config.quant_config)()
        return plain


class PackedAttention(_Attention):
    """TensorRT-LLM's attention, without a KV cache, with our norms and rotary embedding (see `apply_rope`)."""

    def __init__(self, sizes: AttentionSizes, rope: Rope | None, kernels: TensorRtLlmKernels, layer: int) -> None:
        super().__init__(
            hidden_size=sizes.hidden,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            max_position_embeddings=sizes.max_len,
            bias=sizes.bias,
            pos_embd_params=None,
            layer_idx=layer,
            dtype=kernels.dtype,
            dense_bias=sizes.out_bias,
            config=kernels.attention_config(sizes),
            q_scaling=sizes.head_size**-0.5 / sizes.scale,
        )
        self.size_of_head = sizes.head_size
        self.norm_and_rope = NormAndRope(sizes, rope, kernels.dtype)
        self.mask = _Mask.CAUSAL if sizes.causal else _Mask.FULL

    load = load_attention

    def apply_rope(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, position_ids: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TensorRT-LLM's hook between projections and attention: (query, key, value). `q` may hold all three, fused.

        Fused ones stay so if there is nothing to do: splitting and joining them would copy all three.
        """
        if self.norm_and_rope.is_identity:
            return q, k, v
        query, key, value = self.split_qkv(q, k, v)
        heads = (x.unflatten(-1, (-1, self.size_of_head)) for x in (query, key))
        query, key = self.norm_and_rope(*heads, position_ids.reshape(-1))
        return query.flatten(1), key.flatten(1), value

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """[T, H] of [T, H], as our layers call it."""
        mixed: Tensor = super().forward(
            position_ids=sequences.position_ids[None],
            hidden_states=x,
            attn_metadata=sequences.attn_metadata,
            attention_mask=self.mask,
        )
        return mixed
