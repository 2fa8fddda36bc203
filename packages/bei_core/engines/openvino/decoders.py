"""Decoders that are read for their token vectors: Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3.

They differ by a handful of switches, which are the fields of `Decoder`. Written after transformers 5.23's
`models/{llama,mistral,qwen2,qwen3,gemma2,gemma3}/modeling_*.py` and their configuration files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.blocks import Config, Heads, Inputs, Layers, attend, gated, setting
from bei_core.engines.openvino.rope import Rotation, rotation
from bei_core.engines.openvino.weights import Weights
from bei_core.errors import UnsupportedModel

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Decoder:
    """What sets one family apart from Llama."""

    windows: Callable[[Config, int], bool] = lambda config, layer: False  # whether a layer's attention slides
    qkv_bias: bool = False  # whether config.json need not say so
    qk_norm: bool = False  # queries and keys are normalised, head by head
    gemma: bool = False  # RMSNorm scales by 1 + weight, norms also follow each part, embeddings times sqrt(hidden)
    defaults: Config = field(default_factory=dict)  # of keys that config.json may lack, as transformers has them


def _every(config: Config, layer: int) -> bool:
    return True  # whatever `layer_types` says


def _upper(config: Config, layer: int) -> bool:
    if not config.get("use_sliding_window"):
        return False
    return _listed(config, layer, layer >= int(config.get("max_window_layers", 28)))


def _alternate(config: Config, layer: int) -> bool:
    return _listed(config, layer, layer % 2 == 0)


def _five_of_six(config: Config, layer: int) -> bool:
    every = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    return _listed(config, layer, (layer + 1) % every != 0)


def _listed(config: Config, layer: int, otherwise: bool) -> bool:
    """What transformers 5's `layer_types` says of a layer, where config.json has it."""
    types = config.get("layer_types")
    return types[layer] == SLIDING if types else otherwise


_GEMMA = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}

DECODERS: Mapping[str, Decoder] = {
    "llama": Decoder(),
    "mistral": Decoder(windows=_every, defaults={"sliding_window": 4096}),
    "qwen2": Decoder(windows=_upper, qkv_bias=True, defaults={"sliding_window": 4096}),
    "qwen3": Decoder(windows=_upper, qk_norm=True, defaults={"sliding_window": 4096, "head_dim": 128}),
    "gemma2": Decoder(windows=_alternate, gemma=True, defaults={**_GEMMA, "attn_logit_softcapping": 50.0}),
    "gemma3_text": Decoder(
        windows=_five_of_six,
        qk_norm=True,
        gemma=True,
        defaults={**_GEMMA, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
}

PREFIXES, ANCHOR = ("", "model."), "embed_tokens.weight"


class DecoderModel:
    """One checkpoint of a family; `graph` makes its nodes."""

    def __init__(self, family: Decoder, config: Config, weights: Weights, max_len: int) -> None:
        self._family, self._max_len = family, max_len
        self._config = config = {**family.defaults, **config}
        self._layers = Layers(weights)
        self._hidden, self._num_layers = int(setting(config, "hidden_size")), int(setting(config, "num_hidden_layers"))
        queries = int(setting(config, "num_attention_heads"))
        size = int(config.get("head_dim") or self._hidden // queries)
        self._heads = Heads(queries, int(config.get("num_key_value_heads") or queries), size)
        if queries % self._heads.keys:
            raise UnsupportedModel(f"{queries} query heads are not a multiple of {self._heads.keys} key heads")
        self._eps = float(config.get("rms_norm_eps", 1e-6))
        self._activation = str(config.get("hidden_activation") or config.get("hidden_act") or "silu")
        self._scale = float(config.get("query_pre_attn_scalar") or size) ** -0.5 if family.gemma else size**-0.5
        self._soft_cap = config.get("attn_logit_softcapping") if family.gemma else None
        self._kinds = [self._kind(layer) for layer in range(self._num_layers)]

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        hidden = ops.embedding(self._layers.weights.get(ANCHOR, None, self._hidden), inputs.input_ids)
        if self._family.gemma:
            hidden = op.multiply(hidden, op.constant(np.float32(self._hidden**0.5)))
        sights = {kind: self._sight(kind, inputs) for kind in dict.fromkeys(self._kinds)}
        for layer, kind in enumerate(self._kinds):
            hidden = self._layer(hidden, f"layers.{layer}.", *sights[kind])
        return self._norm(hidden, "norm")

    def _kind(self, layer: int) -> str:
        """What a layer's tokens see."""
        slides = bool(self._config.get("sliding_window")) and self._family.windows(self._config, layer)
        return SLIDING if slides else FULL

    def _sight(self, kind: str, inputs: Inputs) -> tuple[Node, Rotation]:
        """(mask, rotation) of a kind of layer."""
        both_ways = bool(self._config.get("use_bidirectional_attention")) or self._config.get("is_causal") is False
        window = None
        if kind == SLIDING:
            window = int(self._config["sliding_window"])
            if both_ways and self._family.gemma:
                window = window // 2 + 1  # it is the width of both sides together
        mask = inputs.mask(causal=not both_ways, window=window)
        turn = rotation(self._config, self._heads.size, inputs.position_ids, self._max_len, layer_type=kind)
        return mask, turn

    def _layer(self, hidden: Node, prefix: str, mask: Node, turn: Rotation) -> Node:
        names = (
            ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
            if self._family.gemma
            else (None, "post_attention_layernorm", None)
        )
        after_attention, before_mlp, after_mlp = (prefix + name if name else None for name in names)
        mixed = self._attention(self._norm(hidden, prefix + "input_layernorm"), prefix + "self_attn.", mask, turn)
        hidden = op.add(hidden, self._norm(mixed, after_attention))
        inner = self._mlp(self._norm(hidden, before_mlp), prefix + "mlp.")
        return op.add(hidden, self._norm(inner, after_mlp))

    def _attention(self, x: Node, prefix: str, mask: Node, turn: Rotation) -> Node:
        heads, bias = self._heads, bool(self._config.get("attention_bias"))
        parts = []
        for name, number in (("q", heads.queries), ("k", heads.keys), ("v", heads.keys)):
            part = self._layers.linear(
                x, f"{prefix}{name}_proj", self._hidden, number * heads.size, bias=bias or self._family.qkv_bias
            )
            part = ops.split_heads(part, number, heads.size)
            parts.append(self._norm(part, f"{prefix}{name}_norm") if self._family.qk_norm and name != "v" else part)
        mixed = attend(parts, heads, mask, rotation=turn, scale=self._scale, soft_cap=self._soft_cap)
        return self._layers.linear(mixed, prefix + "o_proj", heads.width, self._hidden, bias=bias)

    def _mlp(self, x: Node, prefix: str) -> Node:
        bias, inner = bool(self._config.get("mlp_bias")), int(setting(self._config, "intermediate_size"))
        gate, up = (
            self._layers.linear(x, prefix + name, self._hidden, inner, bias=bias) for name in ("gate_proj", "up_proj")
        )
        product = gated(gate, up, self._activation)
        return self._layers.linear(product, prefix + "down_proj", inner, self._hidden, bias=bias)

    def _norm(self, x: Node, name: str | None) -> Node:
        if name is None:
            return x
        return self._layers.rms_norm(x, name, self._eps, offset=1.0 if self._family.gemma else 0.0)
