"""Encoders with rotary positions and gated MLPs: ModernBERT, NomicBERT (v1.5), GTE (`NewModel`).

Source: transformers 5.23, `models/{modernbert,nomic_bert,gte}/modeling_*.py`. `models/families.py` has the names of the
tensors, which are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.layers import Embedding, GatedMlp, LayerNorm, Rope, Weights
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.layouts import SLIDING, RotaryNames, RotarySizes


class Transformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        config = facts.spec.config
        self.names: RotaryNames = facts.of_family.layout
        sizes = RotarySizes.of(self.names, config)
        self.words = Embedding(facts.spec.vocab_size, sizes.hidden, kernels.dtype)
        num_types = 0 if self.names.has_windows else int(config.get("type_vocab_size") or 0)  # ModernBERT has none
        self.types = Embedding(num_types, sizes.hidden, kernels.dtype) if num_types else None
        self.norm = _norm(sizes, kernels)
        ropes = {
            kind: Rope(config, sizes.hidden // sizes.num_heads, facts.spec.max_seq_len, kind)
            for kind in dict.fromkeys(sizes.layer_types)
        }
        self.layers = nn.ModuleList(
            _Layer(self.names, sizes, facts.spec.max_seq_len, ropes[kind], kernels, number)
            for number, kind in enumerate(sizes.layer_types)
        )
        self.final_norm = None if self.names.final_norm is None else _norm(sizes, kernels)

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.words.load(weights, self.names.words)
        if self.types is not None:
            self.types.load(weights, "embeddings.token_type_embeddings")
        self.norm.load(weights, self.names.embedding_norm)
        for number, layer in enumerate(self.layers):
            layer.load(weights, self.names.layer.format(number))
        if self.final_norm is not None and self.names.final_norm is not None:
            self.final_norm.load(weights, self.names.final_norm)

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]."""
        x = self.words(sequences.ids)
        if self.types is not None:
            x = x + (self.types.weight[0] if self.names.only_first_type else self.types(sequences.type_ids))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, sequences)
        return x if self.final_norm is None else self.final_norm(x)


class _Layer(nn.Module):
    def __init__(
        self, names: RotaryNames, sizes: RotarySizes, max_len: int, rope: Rope, kernels: Kernels, number: int
    ) -> None:
        super().__init__()
        self.names, self.is_pre_norm = names, names.final_norm is not None
        window = sizes.window if sizes.layer_types[number] == SLIDING else None
        options: Any = {"bias": sizes.attention_bias, "out_bias": sizes.attention_bias, "window": window}
        attention = AttentionSizes.of_encoder(sizes.hidden, sizes.num_heads, max_len, **options)
        self.attention = kernels.attention(attention, rope, number)
        self.mlp = GatedMlp(
            sizes.hidden,
            sizes.intermediate_size,
            activation(sizes.activation),
            kernels,
            bias=sizes.mlp_bias,
            out_bias=sizes.out_bias,
            up_first=names.up_first,
        )
        has_norm = number > 0 or not self.is_pre_norm  # ModernBERT's embeddings are normed already
        self.attention_norm = _norm(sizes, kernels) if has_norm else None
        self.mlp_norm = _norm(sizes, kernels)

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the layer."""
        names = self.names
        self.attention.load(weights, [prefix + names.qkv, prefix + names.out], prefix)
        self.mlp.load(weights, [prefix + name for name in names.gate_up], prefix + names.down)
        if self.attention_norm is not None:
            self.attention_norm.load(weights, prefix + names.attention_norm)
        self.mlp_norm.load(weights, prefix + names.mlp_norm)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        if not self.is_pre_norm and self.attention_norm is not None:
            x = self.attention_norm(x + self.attention(x, sequences))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention(x if self.attention_norm is None else self.attention_norm(x), sequences)
        return x + self.mlp(self.mlp_norm(x))


def _norm(sizes: RotarySizes, kernels: Kernels) -> LayerNorm:
    return LayerNorm(sizes.hidden, sizes.eps, kernels.dtype, bias=sizes.norm_bias)
