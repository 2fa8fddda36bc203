"""Encoders with rotary positions and gated feed-forward layers: ModernBERT, NomicBERT (v1.5), GTE (`NewModel`).

Source: transformers 5.23, `models/{modernbert,nomic_bert,gte}/modeling_*.py`. Tensor names are those of the published
checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bei_core.engines.torch.artifact import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.layers import Embedding, GatedMlp, LayerNorm, Rope, Weights
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config, read_setting
from bei_core.models.families import FULL, SLIDING


@dataclass(frozen=True)
class _Family:
    """Names of a family's tensors and of its settings, and how it differs."""

    words: str
    embedding_norm: str
    layer: str
    qkv: str
    out: str
    attention_norm: str
    gate_up: tuple[str, ...]
    down: str
    mlp_norm: str
    is_pre_norm: bool = False
    up_first: bool = True
    eps: tuple[str, ...] = ("layer_norm_eps",)
    default_eps: float = 1e-12
    act: str = "hidden_act"
    supported: tuple[tuple[str, object], ...] = ()  # the only values of these settings that the code computes


_FAMILIES = {
    "modernbert": _Family(
        words="embeddings.tok_embeddings",
        embedding_norm="embeddings.norm",
        layer="layers.{}.",
        qkv="attn.Wqkv",
        out="attn.Wo",
        attention_norm="attn_norm",
        gate_up=("mlp.Wi",),
        down="mlp.Wo",
        mlp_norm="mlp_norm",
        is_pre_norm=True,
        up_first=False,
        eps=("norm_eps",),
        default_eps=1e-5,
        act="hidden_activation",
    ),
    "nomic": _Family(
        words="embeddings.word_embeddings",
        embedding_norm="emb_ln",
        layer="encoder.layers.{}.",
        qkv="attn.Wqkv",
        out="attn.out_proj",
        attention_norm="norm1",
        gate_up=("mlp.fc11", "mlp.fc12"),
        down="mlp.fc2",
        mlp_norm="norm2",
        eps=("layer_norm_epsilon", "layer_norm_eps"),
        act="",  # always SwiGLU
        supported=(
            ("prenorm", False),
            ("parallel_block", False),
            ("rotary_emb_fraction", 1.0),
            ("rotary_emb_interleaved", False),
            ("activation_function", "swiglu"),
            ("rotary_scaling_factor", None),
            ("num_experts", 0),
        ),
    ),
    "gte": _Family(
        words="embeddings.word_embeddings",
        embedding_norm="embeddings.LayerNorm",
        layer="encoder.layer.{}.",
        qkv="attention.qkv_proj",
        out="attention.o_proj",
        attention_norm="attn_ln",
        gate_up=("mlp.up_gate_proj",),
        down="mlp.down_proj",
        mlp_norm="mlp_ln",
        supported=(
            ("position_embedding_type", "rope"),
            ("layer_norm_type", "layer_norm"),
            ("logn_attention_scale", False),
        ),
    ),
}


class RotaryTransformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        config, self.name = facts.spec.config, facts.family
        self.family = family = _FAMILIES[facts.family]
        for name, value in family.supported:
            if config.get(name, value) not in {value, None}:
                raise UnsupportedModelError(f"config.json: {name} {config[name]!r} is not supported, only {value!r}")
        hidden = int(read_setting(config, "n_embd", "hidden_size"))
        self.words = Embedding(facts.spec.vocab_size, hidden, kernels.dtype)
        # ModernBERT has no token types; GTE as transformers has it uses type 0 for all tokens.
        num_types = int(config.get("type_vocab_size") or 0)
        has_types = facts.family != "modernbert" and num_types > 0
        self.types = Embedding(num_types, hidden, kernels.dtype) if has_types else None
        self.norm = self._norm(hidden, config, kernels)
        num_layers = int(read_setting(config, "n_layer", "num_hidden_layers"))
        size = hidden // int(read_setting(config, "n_head", "num_attention_heads"))
        types = [_layer_type(facts, number) for number in range(num_layers)]
        ropes = {kind: Rope(config, size, facts.spec.max_seq_len, kind) for kind in dict.fromkeys(types)}
        self.layers = nn.ModuleList(
            _Layer(self, facts, ropes[kind], kernels, number, kind) for number, kind in enumerate(types)
        )
        self.final_norm = self._norm(hidden, config, kernels) if family.is_pre_norm else None

    def _norm(self, hidden: int, config: Config, kernels: Kernels) -> LayerNorm:
        eps = next((float(config[name]) for name in self.family.eps if config.get(name)), self.family.default_eps)
        return LayerNorm(hidden, eps, kernels.dtype, bias=self.name != "modernbert" or bool(config.get("norm_bias")))

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.words.load(weights, self.family.words)
        if self.types is not None:
            self.types.load(weights, "embeddings.token_type_embeddings")
        self.norm.load(weights, self.family.embedding_norm)
        for number, layer in enumerate(self.layers):
            layer.load(weights, self.family.layer.format(number))
        if self.final_norm is not None:
            self.final_norm.load(weights, "final_norm")

    def forward(self, sequences: Sequences) -> Tensor:
        """[T, H]."""
        x = self.words(sequences.ids)
        if self.types is not None:
            x = x + (self.types.weight[0] if self.name == "gte" else self.types(sequences.type_ids))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, sequences)
        return x if self.final_norm is None else self.final_norm(x)


class _Layer(nn.Module):
    def __init__(
        self, model: RotaryTransformer, facts: Facts, rope: Rope, kernels: Kernels, number: int, layer_type: str
    ) -> None:
        super().__init__()
        config, self.family = facts.spec.config, model.family
        hidden = int(read_setting(config, "n_embd", "hidden_size"))
        inner = int(read_setting(config, "n_inner", "intermediate_size"))
        biased = {"bias": facts.family == "gte", "out_bias": facts.family == "gte"}
        if facts.family == "modernbert":
            biased = dict.fromkeys(biased, bool(config.get("attention_bias")))
        window = int(config.get("local_attention", 128)) // 2 + 1  # `local_attention` counts both sides
        sizes: Any = {**biased, "window": window if layer_type == SLIDING else None}
        num_heads = int(read_setting(config, "n_head", "num_attention_heads"))
        attention = AttentionSizes.of_encoder(hidden, num_heads, facts.spec.max_seq_len, **sizes)
        self.attention = kernels.attention(attention, rope, number)
        act = activation(str(config.get(self.family.act, "gelu")) if self.family.act else "silu")
        bias = facts.family == "modernbert" and bool(config.get("mlp_bias"))
        out_bias = bias or facts.family == "gte"
        up_first = self.family.up_first
        self.mlp = GatedMlp(hidden, inner, act, kernels, bias=bias, out_bias=out_bias, up_first=up_first)
        has_norm = number > 0 or not self.family.is_pre_norm  # ModernBERT's embeddings are normed already
        self.attention_norm = model._norm(hidden, config, kernels) if has_norm else None
        self.mlp_norm = model._norm(hidden, config, kernels)

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the layer."""
        family = self.family
        self.attention.load(weights, [prefix + family.qkv, prefix + family.out], prefix)
        self.mlp.load(weights, [prefix + name for name in family.gate_up], prefix + family.down)
        if self.attention_norm is not None:
            self.attention_norm.load(weights, prefix + family.attention_norm)
        self.mlp_norm.load(weights, prefix + family.mlp_norm)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        if not self.family.is_pre_norm and self.attention_norm is not None:
            x = self.attention_norm(x + self.attention(x, sequences))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention(x if self.attention_norm is None else self.attention_norm(x), sequences)
        return x + self.mlp(self.mlp_norm(x))


def _layer_type(facts: Facts, number: int) -> str:
    """Whether a layer has a sliding window, as two of three layers of ModernBERT have."""
    if facts.family != "modernbert":
        return FULL
    types = facts.spec.config.get("layer_types")
    if types:
        return str(types[number])
    return SLIDING if number % int(facts.spec.config.get("global_attn_every_n_layers", 3)) else FULL
