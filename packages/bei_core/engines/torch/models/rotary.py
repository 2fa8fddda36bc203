"""Encoders with rotary positions: ModernBERT, NomicBERT (v1.5, and v2 with experts), GTE (`NewModel`).

Source: transformers 5.23, `models/{modernbert,nomic_bert,gte}/modeling_*.py`. `models/families.py` has the names of the
tensors, which are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.layers import (
    Embedding,
    GatedMlp,
    LayerNorm,
    Mlp,
    Rope,
    TransformerLayer,
    Weights,
    empty,
    fill,
)
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.layouts import SLIDING, ExpertSizes, RotaryNames, RotarySizes


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
            _Layer(self.names, sizes, ropes[kind], kernels, number) for number, kind in enumerate(sizes.layer_types)
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
            has_one = self.names.has_one_type(len(self.types.weight))
            x = x + (self.types.weight[0] if has_one else self.types(sequences.type_ids))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, sequences)
        return x if self.final_norm is None else self.final_norm(x)


class _Layer(TransformerLayer):
    def __init__(self, names: RotaryNames, sizes: RotarySizes, rope: Rope, kernels: Kernels, number: int) -> None:
        window = sizes.window if sizes.layer_types[number] == SLIDING else None
        options: Any = {"bias": sizes.attention_bias, "out_bias": sizes.attention_bias, "window": window}
        attention = AttentionSizes.of_encoder(sizes.hidden, sizes.num_heads, **options)
        super().__init__(
            kernels.attention(attention, rope, number),
            _mlp(sizes, kernels, number),
            lambda: _norm(sizes, kernels),
            is_pre_norm=names.final_norm is not None,
        )
        self.names = names
        if self.is_pre_norm and number == 0:  # ModernBERT's embeddings are normed already
            self.attention_norm = nn.Identity()
        if isinstance(self.mlp, GatedMlp):
            self.mlp.up_first = names.up_first

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the layer."""
        names = self.names
        self.attention.load(weights, [prefix + names.qkv, prefix + names.out], prefix)
        up = names.gate_up if isinstance(self.mlp, GatedMlp) else ("mlp.fc1",)
        self.mlp.load(weights, [prefix + name for name in up], prefix + names.down)
        if not isinstance(self.attention_norm, nn.Identity):
            self.attention_norm.load(weights, prefix + names.attention_norm)
        self.mlp_norm.load(weights, prefix + names.mlp_norm)


def _mlp(sizes: RotarySizes, kernels: Kernels, number: int) -> nn.Module:
    """Returns the MLP of a layer: a gated one, a plain one, or experts (Nomic Embed v2)."""
    shape, experts = (sizes.hidden, sizes.intermediate_size, sizes.activation), sizes.experts
    if experts is not None and number % experts.every == 1:
        return Experts(*shape, experts, kernels.dtype)
    make = GatedMlp if sizes.is_gated else Mlp
    return make(*shape, kernels, bias=sizes.mlp_bias, out_bias=sizes.out_bias)


class Experts(nn.Module):
    """A mixture of experts (Shazeer et al. 2017): each token goes through the MLPs that a router chooses for it.

    All experts compute every token, as two matmuls, and the shares of experts that are not chosen are 0. So the shapes
    are fixed, as CUDA graphs need them.
    """

    def __init__(self, hidden: int, inner: int, act: str, sizes: ExpertSizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes, self.act = sizes, activation(act)
        self.router = empty(sizes.count, hidden, dtype=dtype)
        self.w1, self.w2 = (empty(sizes.count * inner, hidden, dtype=dtype) for _ in range(2))
        self.bias = empty(hidden, dtype=dtype)

    def load(self, weights: Weights, up: Sequence[str], down: str) -> None:
        """Loads router and experts, which are beside the linear layer `up` that other layers have."""
        prefix = up[0].rpartition(".")[0]
        fill(self.router, weights.layer(f"{prefix}.router.layer"), "weight", f"{prefix}.router.layer")
        for parameter, layer, part in ((self.w1, ".mlp", "w1"), (self.w2, ".mlp", "w2"), (self.bias, "", "bias")):
            fill(parameter, weights.layer(f"{prefix}.experts{layer}"), part, f"{prefix}.experts{layer}")

    def forward(self, x: Tensor) -> Tensor:
        """[T, H]."""
        probabilities = F.linear(x, self.router).float().softmax(-1)
        chosen = probabilities.topk(self.sizes.top_k, -1)  # not normalised to a sum of 1
        shares = torch.zeros_like(probabilities).scatter(-1, chosen.indices, chosen.values)
        inner = self.act(F.linear(x, self.w1)).unflatten(-1, (self.sizes.count, -1))
        return (inner * shares[..., None].to(x.dtype)).flatten(1) @ self.w2 + self.bias


def _norm(sizes: RotarySizes, kernels: Kernels) -> LayerNorm:
    return LayerNorm(sizes.hidden, sizes.eps, kernels.dtype, bias=sizes.norm_bias)
