"""The layouts of decoders: Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3; some also with bidirectional attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config, read_number, read_size, read_whole
from bei_core.models.layouts import Layout, by_layer_types, check_rope, read_num_layers, read_window
from bei_core.models.sizes import FULL, SLIDING, Heads, Sizes
from bei_core.models.tensor_names import TensorNames

_LLAMA_NAMES = TensorNames(
    words="embed_tokens",
    layer="layers.{}.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    attention_norm="input_layernorm",
    gated=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    mlp_norm="post_attention_layernorm",
    final_norm="norm",
    final_projection="linear",  # of voyage-4-nano's class (`Qwen3BidirectionalModel`)
)
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
# In Gemma 2 and 3, the norm that other families have before the MLP is after attention.
_GEMMA2_NAMES = replace(
    _LLAMA_NAMES,
    mlp_norm="pre_feedforward_layernorm",
    attention_out_norm="post_attention_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayout(Layout):
    """Decoders: how a family differs from Llama."""

    name: ClassVar[str] = "decoder"
    has_rope: ClassVar[bool] = True
    names: tuple[TensorNames, ...] = (_LLAMA_NAMES,)
    reads_biases: bool = True
    is_sliding: Callable[[Config, int], bool] = lambda config, layer: False  # whether a layer has a sliding window
    qkv_bias: bool = False  # queries, keys and values have a bias, even if config.json has no `attention_bias`
    gemma: bool = False  # RMSNorm scales by 1 + weight; embeddings times sqrt(H)
    reads_scale: bool = False  # config.json may have the scale and the soft cap of scores (Gemma 2 and 3)
    bidirectional: bool = False  # attention is never causal, whatever config.json says

    def sizes(self, config: Config) -> Sizes:
        """See `Layout.sizes`."""
        hidden, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
        head_size = read_size(config, "head_dim", default=hidden // num_heads)
        num_kv_heads = read_size(config, "num_key_value_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise UnsupportedModelError(f"{num_heads} query heads are not a multiple of {num_kv_heads} key heads")
        layer_types = self._layer_types(config)
        check_rope(config, layer_types)
        scaled_by = (read_number(config, "query_pre_attn_scalar", 0) if self.reads_scale else 0) or head_size
        bias, mlp_bias = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
        return Sizes(
            config=config,
            hidden=hidden,
            heads=Heads(num_heads, num_kv_heads, head_size, scaled_by**-0.5),
            intermediate_size=read_size(config, "intermediate_size"),
            activation=str(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
            eps=read_number(config, "rms_norm_eps", 1e-6),
            layer_types=layer_types,
            embedding_scale=hidden**0.5 if self.gemma else 1.0,
            causal=self.is_causal(config),
            window=self._window(config) if SLIDING in layer_types else 0,
            soft_cap=(read_number(config, "attn_logit_softcapping", 0) if self.reads_scale else 0) or None,
            has_rope=True,
            is_rms=True,
            norm_offset=1.0 if self.gemma else 0.0,
            qkv_bias=bias or self.qkv_bias,
            out_bias=bias,
            is_gated=True,
            mlp_bias=mlp_bias,
            mlp_out_bias=mlp_bias,
        )

    def is_causal(self, config: Config) -> bool:
        """See `Layout.is_causal`."""
        both_ways = bool(config.get("use_bidirectional_attention")) or config.get("is_causal") is False
        return not (self.bidirectional or both_ways)

    def _layer_types(self, config: Config) -> tuple[str, ...]:
        num_layers, has_window = read_num_layers(config, "num_hidden_layers"), bool(config.get("sliding_window"))
        return tuple(SLIDING if has_window and self.is_sliding(config, layer) else FULL for layer in range(num_layers))

    def _window(self, config: Config) -> int:
        window = read_window(config, "sliding_window")
        if self.is_causal(config):
            return window
        # Gemma 3: `sliding_window` counts both sides together. `is_causal` false: the distance `sliding_window` counts,
        # for a Gemma 3 with both keys that of one side.
        both_sides = self.gemma and config.get("use_bidirectional_attention")
        size = window // 2 + 1 if both_sides else window
        return size if both_sides and config.get("is_causal") is not False else size + 1


def _every_layer(config: Config, layer: int) -> bool:
    """Whether `layer_types` does not say otherwise. For Mistral, which AutoModel then loads as Ministral."""
    return by_layer_types(config, layer, True)


def _upper_layers(config: Config, layer: int) -> bool:
    """Whether the layer is at or above `max_window_layers` in a model with windows. For Qwen."""
    if not config.get("use_sliding_window"):
        return False
    first = 28 if config.get("max_window_layers") is None else read_whole(config, "max_window_layers")
    return by_layer_types(config, layer, layer >= first)


def _even_layers(config: Config, layer: int) -> bool:
    """Whether the number of the layer is even. For Gemma 2."""
    return by_layer_types(config, layer, layer % 2 == 0)


def _all_but_every_sixth_layer(config: Config, layer: int) -> bool:
    """Whether the layer is not the last in its group of six. For Gemma 3."""
    # transformers ignores the saved `_sliding_window_pattern`.
    every = read_whole(config, "sliding_window_pattern") or 6
    return by_layer_types(config, layer, (layer + 1) % every != 0)


LLAMA = DecoderLayout()
LLAMA_BIDIRECTIONAL = DecoderLayout(bidirectional=True)
MISTRAL = DecoderLayout(is_sliding=_every_layer)
QWEN2 = DecoderLayout(is_sliding=_upper_layers, qkv_bias=True)
QWEN3 = DecoderLayout(names=(replace(_LLAMA_NAMES, qk_norms=_QK_NORMS),), is_sliding=_upper_layers)
QWEN3_BIDIRECTIONAL = replace(QWEN3, bidirectional=True)
GEMMA = DecoderLayout(gemma=True)
GEMMA2 = DecoderLayout(names=(_GEMMA2_NAMES,), is_sliding=_even_layers, gemma=True, reads_scale=True)
GEMMA3 = DecoderLayout(
    names=(replace(_GEMMA2_NAMES, qk_norms=_QK_NORMS),),
    is_sliding=_all_but_every_sixth_layer,
    gemma=True,
    reads_scale=True,
)
