"""BERT-like encoders, with post-norm layers; `models/families.py` has the tensor names of each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts, attention_of
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models import layers
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights
from bei_core.models.configuration import read_whole
from bei_core.models.layouts import FULL, TASK_TYPES, BertNames, BertSizes, find_layout


class Transformer(layers.Transformer):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        layouts: tuple[BertNames, ...] = facts.of_family.layout
        sizes = BertSizes.of(layouts[0], facts.spec.config)
        width = read_whole(facts.spec.config, "embedding_size") or sizes.hidden  # narrower than H in some ELECTRAs
        super().__init__(kernels, width, words=sizes.vocab_size, positions=sizes.num_positions, types=sizes.num_types)
        self.layouts, self.padding_id, self.has_task_type = layouts, sizes.padding_id, sizes.has_task_type
        self.norm = nn.LayerNorm(width, sizes.eps, dtype=kernels.dtype)
        self.make_norm = partial(nn.LayerNorm, sizes.hidden, sizes.eps, dtype=kernels.dtype)
        self.project_normed: Any = nn.Identity()
        if width != sizes.hidden:
            self.project_normed = kernels.linear(width, sizes.hidden, "embeddings", bias=True)
        gated = layouts[0].has_alibi
        has_bias = gated or layouts[0].relative_attention is not None
        self.score_bias = DistanceBias(sizes.num_heads, facts.spec.max_seq_len) if has_bias else None
        shape = (sizes.hidden, sizes.intermediate_size, sizes.activation)
        self.layers = nn.ModuleList(
            layers.TransformerLayer(
                kernels.attention(attention_of(facts)[FULL], None, layer, self.score_bias),
                layers.Mlp(*shape, kernels, gated=gated, bias=not gated, out_bias=True),
                self.make_norm,
            )
            for layer in range(sizes.num_layers)
        )

    def load(self, weights: Weights) -> None:
        """Loads all layers, with the names of the first layout whose tensors the checkpoint has."""
        names = find_layout(self.layouts, weights.__contains__)
        for layer in self.layers if names.qk_norms else ():  # the code model of JinaBERT
            layer.attention.norm_and_rope = _QueryKeyNorms(self.make_norm(), self.make_norm())
            layer.attention_out_norm, layer.repeats_residual = self.make_norm(), True
        self.load_named(weights, names)
        if self.has_task_type:
            types = self.tables["token_type"].weight
            types += weights.layer(TASK_TYPES.removesuffix(".weight"))["weight"][0].to(types)
        if not isinstance(self.project_normed, nn.Identity):
            self.project_normed.load_weights([weights.layer("embeddings_project")])
        if self.score_bias is not None and names.relative_attention is not None:
            self.score_bias.load(weights, names.relative_attention.removesuffix(".weight"))

    def embed(self, sequences: Sequences) -> Tensor:
        """Returns the input of the first layer, [T, H]."""
        if (first := self.padding_id) is not None:  # such tokens have its row of the position table
            sequences = replace(sequences, position_ids=sequences.count_up(sequences.ids != first) + first)
        return self.project_normed(super().embed(sequences))


class _QueryKeyNorms(nn.Module):
    """Norms of queries and keys over all heads; it takes the place of `NormAndRope`."""

    is_identity = False

    def __init__(self, query: nn.Module, key: nn.Module) -> None:
        super().__init__()
        self.query, self.key = query, key

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the norms."""
        weights.load(self.query, prefix + "q")
        weights.load(self.key, prefix + "k")

    def forward(self, query_key: Tensor, position_ids: Tensor) -> Tensor:
        """Returns the queries and keys [T, 2 N, S] after the norms."""
        query, key = query_key.flatten(1).chunk(2, -1)
        return torch.cat([self.query(query), self.key(key)], -1).view_as(query_key)
