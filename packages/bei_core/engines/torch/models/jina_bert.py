"""JinaBERT v2 (Günther et al. 2023): BERT with ALiBi in both directions and gated MLPs.

Two published classes have this name, and the names of their tensors differ: `jinaai/jina-bert-implementation`
(jina-embeddings-v2, jina-reranker-v1) and `jinaai/jina-bert-v2-qk-post-norm` (jina-embeddings-v2-base-code), which also
has norms of queries and keys and one more residual connection around attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.layers import Embedding, GatedMlp, LayerNorm, TransformerLayer, Weights
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.configuration import read_size
from bei_core.models.layouts import jina_gate


class Transformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        config, max_len = facts.spec.config, facts.spec.max_seq_len
        hidden, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
        eps, num_types = float(config.get("layer_norm_eps", 1e-12)), read_size(config, "type_vocab_size", default=2)
        self.words = Embedding(facts.spec.vocab_size, hidden, kernels.dtype)
        self.types = Embedding(num_types, hidden, kernels.dtype)
        self.norm = LayerNorm(hidden, eps, kernels.dtype)
        alibi = DistanceBias(num_heads, max_len)
        sizes = AttentionSizes.of_encoder(hidden, num_heads)
        inner, gate = read_size(config, "intermediate_size"), jina_gate(config)
        self.layers = nn.ModuleList(
            _Layer(
                kernels.attention(sizes, None, layer, alibi),
                GatedMlp(hidden, inner, gate, kernels, bias=False, out_bias=True),
                lambda: LayerNorm(hidden, eps, kernels.dtype),
            )
            for layer in range(read_size(config, "num_hidden_layers"))
        )

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.words.load(weights, "embeddings.word_embeddings")
        self.types.load(weights, "embeddings.token_type_embeddings")
        self.norm.load(weights, "embeddings.LayerNorm")
        for number, layer in enumerate(self.layers):
            layer.load(weights, f"encoder.layer.{number}.")

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]."""
        x = self.norm(self.words(sequences.ids) + self.types(sequences.type_ids))
        for layer in self.layers:
            x = layer(x, sequences)
        return x


class _Layer(TransformerLayer):
    def __init__(self, *modules: Any) -> None:
        super().__init__(*modules)
        self.middle_norm: LayerNorm | None = None  # only of the code model

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the layer. The tensors of the checkpoint decide which of the two classes it is."""
        gate_up, down, norm = "mlp.gated_layers", "mlp.wo", "mlp.layernorm"
        if f"{prefix}mlp.up_gated_layer" in weights:
            gate_up, down, norm = "mlp.up_gated_layer", "mlp.down_layer", "layer_norm_2"
            device = self.mlp_norm.weight.device
            self.attention.norm_and_rope = _QueryKeyNorms(self.make_norm(), self.make_norm()).to(device)
            self.mlp.up_first, self.middle_norm = True, self.make_norm().to(device)
            self.middle_norm.load(weights, prefix + "layer_norm_1")
        layers = [f"{prefix}attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
        self.attention.load(weights, layers, prefix + "attention.self.")
        self.attention_norm.load(weights, prefix + "attention.output.LayerNorm")
        self.mlp.load(weights, [prefix + gate_up], prefix + down)
        self.mlp_norm.load(weights, prefix + norm)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        mixed = self.attention_norm(x + self.attention(x, sequences))
        mixed = mixed if self.middle_norm is None else self.middle_norm(x + mixed)
        return self.mlp_norm(mixed + self.mlp(mixed))


class _QueryKeyNorms(nn.Module):
    """Norms of queries and keys over all heads; it takes the place of `NormAndRope`."""

    is_identity = False

    def __init__(self, query: LayerNorm, key: LayerNorm) -> None:
        super().__init__()
        self.query, self.key = query, key

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the norms."""
        self.query.load(weights, prefix + "layer_norm_q")
        self.key.load(weights, prefix + "layer_norm_k")

    def forward(self, query_key: Tensor, position_ids: Tensor) -> Tensor:
        """Returns the queries and keys [T, 2 N, S] after the norms."""
        query, key = query_key.flatten(1).chunk(2, -1)
        return torch.cat([self.query(query), self.key(key)], -1).view_as(query_key)
