"""`TensorRtLlmKernels`, the set of kernels that gives the model classes TensorRT-LLM's Linear and Attention."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.tensorrt_llm._compat import upstream
from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, fits_fp8
from bei_core.engines.torch.kernels.torch import Kernels, NormAndRope, load_attention
from bei_core.engines.torch.kernels.varlen import ScoreBias
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.rope import rope_settings

_Linear, _WeightMode, _WeightsLoadingConfig = (upstream(n) for n in ("Linear", "WeightMode", "WeightsLoadingConfig"))
_Attention: Any = upstream("Attention")
_Mask: Any = upstream("PredefinedAttentionMask")
_RopeParams: Any = upstream("RopeParams")
_RotaryScalingType: Any = upstream("RotaryScalingType")
_PositionalEmbeddingParams: Any = upstream("PositionalEmbeddingParams")
_PositionEmbeddingType: Any = upstream("PositionEmbeddingType")
_MODES = {None: "VANILLA", "qkv": "FUSED_QKV_LINEAR", "gate_up": "FUSED_GATE_UP_LINEAR"}


class TensorRtLlmKernels(Kernels):
    """Makes linear layers and attention of TensorRT-LLM. It never divides a model among GPUs."""

    def __init__(self, model_config: Any, dtype: torch.dtype, facts: Facts) -> None:
        """`model_config` is TensorRT-LLM's config of the model. `dtype` is that of the parameters."""
        super().__init__(dtype)
        self.model_config, self.facts = model_config, facts

    def linear(
        self, size_in: int, size_out: int, part: str, *, bias: bool, fused: str | None = None, split: str | None = None
    ) -> Any:
        """Returns a Linear of TensorRT-LLM; see `Kernels.linear`. `split` has no effect."""
        is_quantized = part in self.facts.quantized and fits_fp8(size_in, size_out)
        return _Linear(
            size_in,
            size_out,
            bias=bias,
            dtype=self.dtype,
            quant_config=self.model_config.quant_config if is_quantized else None,
            weights_loading_config=_WeightsLoadingConfig(weight_mode=getattr(_WeightMode, _MODES[fused])),
        )

    def attention(
        self, sizes: AttentionSizes, rope: nn.Module | None, layer: int, score_bias: ScoreBias | None = None
    ) -> Any:
        """Returns an Attention of TensorRT-LLM; see `Kernels.attention`.

        For a layer with soft-capped scores, a window or a bias of scores, it is the `Attention` in plain torch instead.
        """
        if sizes.is_plain and score_bias is None:
            return PackedAttention(sizes, rope, self, layer)
        return super().attention(sizes, rope, layer, score_bias)


def fused_rope(sizes: AttentionSizes, rope: nn.Module | None, kernels: TensorRtLlmKernels) -> Any:
    """Returns the rotary embedding that TensorRT-LLM's attention kernel is to apply; None if torch has to.

    The kernel counts positions from 0 in each sequence, and cannot normalise queries and keys. Its frequencies are
    unscaled, or scaled as those of Llama 3. It is not used for full masks, which TensorRT-LLM's own classes do not show
    without a KV cache, nor for f32.
    """
    if rope is None or sizes.eps is not None or not sizes.causal or kernels.dtype == torch.float32:
        return None
    kind, theta, scaling = rope_settings(kernels.facts.spec.config)
    if kind not in {"default", "dynamic", "llama3"}:  # dynamic: unscaled up to the model's length
        return None
    scaled: dict[str, Any] = {}
    if kind == "llama3":
        scaled = {name: scaling[name] for name in ("low_freq_factor", "high_freq_factor")}
        scaled |= {"scale_type": _RotaryScalingType.llama3, "scale": scaling["factor"]}
        scaled["original_max_positions"] = scaling["original_max_position_embeddings"]
    params = _RopeParams(dim=sizes.head_size, theta=theta, max_positions=kernels.facts.spec.max_seq_len, **scaled)
    return _PositionalEmbeddingParams(type=_PositionEmbeddingType.rope_gpt_neox, rope=params)


class PackedAttention(_Attention):
    """TensorRT-LLM's attention without a KV cache.

    If its kernel does not apply the rotary embedding (`fused_rope`), `apply_rope` does in torch, after the norms.
    """

    def __init__(self, sizes: AttentionSizes, rope: nn.Module | None, kernels: TensorRtLlmKernels, layer: int) -> None:
        config, fused = kernels.model_config, fused_rope(sizes, rope, kernels)
        if sizes.part not in kernels.facts.quantized:
            config = copy.copy(config)
            config.quant_config = type(config.quant_config)()
        super().__init__(
            hidden_size=sizes.hidden,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            max_position_embeddings=kernels.facts.spec.max_seq_len,
            bias=sizes.bias,
            pos_embd_params=fused,
            layer_idx=layer,
            dtype=kernels.dtype,
            dense_bias=sizes.out_bias,
            config=config,
            q_scaling=sizes.head_size**-0.5 / sizes.scale,
        )
        self.size_of_head = sizes.head_size
        self.norm_and_rope = NormAndRope(sizes, None if fused else rope, kernels.rank)
        self.mask = _Mask.CAUSAL if sizes.causal else _Mask.FULL

    load = load_attention

    def apply_rope(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, position_ids: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns (query, key, value) after norms and rotary embedding, each [T, heads * S].

        TensorRT-LLM calls this method between the projections and the attention. The three may come joined in `q`, with
        None for `k` and `v`. If there is nothing to compute, they are returned as they came, because splitting and
        joining them would copy all three.
        """
        if self.norm_and_rope.is_identity:
            return q, k, v
        joined = q if k is None or v is None else torch.cat([q, k, v], -1)
        query_key, value = joined.split([self.q_size + self.kv_size, self.kv_size], -1)
        heads = query_key.unflatten(-1, (-1, self.size_of_head))
        query_key = self.norm_and_rope(heads, position_ids.reshape(-1)).flatten(1)
        return (*query_key.split([self.q_size, self.kv_size], -1), value)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, H] for x [T, H]; the layers of `engines/torch/models` call it with these arguments."""
        return super().forward(
            position_ids=sequences.position_ids[None],
            hidden_states=x,
            attn_metadata=sequences.attn_metadata,
            attention_mask=self.mask,
        )
