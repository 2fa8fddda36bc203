"""JinaBERT v2 (Günther et al. 2023): BERT with ALiBi in both directions and gated MLPs.

Two published classes have this name, and the names of their tensors differ: `jinaai/jina-bert-implementation`
(jina-embeddings-v2, jina-reranker-v1) and `jinaai/jina-bert-v2-qk-post-norm` (jina-embeddings-v2-base-code), which also
has norms of queries and keys and one more residual connection around attention.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models import layers
from bei_core.engines.torch.models.bert import layer_names
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import LayerNames, Weights
from bei_core.models.configuration import read_size
from bei_core.models.layouts import BertNames, jina_gate

_NAMES = replace(
    layer_names(BertNames(up="mlp.gated_layers", down="mlp.wo", out_norm="mlp.layernorm")), qk_norms="attention.self."
)
_OTHER_NAMES = replace(_NAMES, up=("mlp.up_gated_layer",), down="mlp.down_layer", mlp_norm="layer_norm_2")


class Transformer(layers.Transformer):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        config = facts.spec.config
        hidden, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
        num_types = read_size(config, "type_vocab_size", default=2)
        super().__init__(kernels, hidden, words=facts.spec.vocab_size, types=num_types)
        make_norm = partial(nn.LayerNorm, hidden, float(config.get("layer_norm_eps", 1e-12)), dtype=kernels.dtype)
        self.norm = make_norm()
        alibi = DistanceBias(num_heads, facts.spec.max_seq_len)
        sizes = AttentionSizes.of_encoder(hidden, num_heads)
        inner, gate = read_size(config, "intermediate_size"), jina_gate(config)
        self.layers = nn.ModuleList(
            _Layer(
                kernels.attention(sizes, None, layer, alibi),
                layers.Mlp(hidden, inner, gate, kernels, gated=True, bias=False, out_bias=True),
                make_norm,
            )
            for layer in range(read_size(config, "num_hidden_layers"))
        )

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.load_named(weights, "encoder.layer.{}.", _NAMES, norm="embeddings.LayerNorm")


class _Layer(layers.TransformerLayer):
    def __init__(self, *modules: Any) -> None:
        super().__init__(*modules)
        self.middle_norm: nn.Module | None = None  # only of the code model

    def load(self, weights: Weights, prefix: str, names: LayerNames) -> None:
        """Loads the layer. The tensors of the checkpoint decide which of the two classes it is."""
        if prefix + _OTHER_NAMES.up[0] in weights:
            names, device = _OTHER_NAMES, self.mlp_norm.weight.device
            self.attention.norm_and_rope = _QueryKeyNorms(self.make_norm(), self.make_norm()).to(device)
            self.mlp.up_first, self.middle_norm = True, self.make_norm().to(device)
            weights.load(self.middle_norm, prefix + "layer_norm_1")
        super().load(weights, prefix, names)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        mixed = self.attention_norm(x + self.attention(x, sequences))
        mixed = mixed if self.middle_norm is None else self.middle_norm(x + mixed)
        return self.mlp_norm(mixed + self.mlp(mixed))


class _QueryKeyNorms(nn.Module):
    """Norms of queries and keys over all heads; it takes the place of `NormAndRope`."""

    is_identity = False

    def __init__(self, query: nn.Module, key: nn.Module) -> None:
        super().__init__()
        self.query, self.key = query, key

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the norms."""
        weights.load(self.query, prefix + "layer_norm_q")
        weights.load(self.key, prefix + "layer_norm_k")

    def forward(self, query_key: Tensor, position_ids: Tensor) -> Tensor:
        """Returns the queries and keys [T, 2 N, S] after the norms."""
        query, key = query_key.flatten(1).chunk(2, -1)
        return torch.cat([self.query(query), self.key(key)], -1).view_as(query_key)
