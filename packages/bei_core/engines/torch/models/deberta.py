"""DeBERTa v2 and v3 (He et al. 2021), after transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models import layers
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.relative import DisentangledBias, reach
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights
from bei_core.models.deberta import DebertaSizes
from bei_core.models.layouts import BertNames

_SELF = "attention.self."
_NAMES = BertNames(qkv=(f"{_SELF}query_proj", f"{_SELF}key_proj", f"{_SELF}value_proj"))


class Transformer(layers.Transformer):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        sizes = DebertaSizes.of(facts.spec.config)
        super().__init__(
            kernels, sizes.width, words=facts.spec.vocab_size, positions=sizes.num_positions, types=sizes.num_types
        )
        self.sizes, self.dtype = sizes, kernels.dtype
        self.make_norm = partial(nn.LayerNorm, sizes.hidden, sizes.eps, dtype=kernels.dtype)
        if sizes.width != sizes.hidden:
            self.project = kernels.linear(sizes.width, sizes.hidden, "embeddings", bias=False)
        self.norm = self.make_norm()
        rows = torch.from_numpy(sizes.rows(reach(facts.spec.max_seq_len)))
        attention = AttentionSizes.of_encoder(sizes.hidden, sizes.num_heads, scale=sizes.scale)
        biases = [DisentangledBias(rows, sizes) for _ in range(sizes.num_layers)]
        self.layers = nn.ModuleList(
            layers.TransformerLayer(
                kernels.attention(attention, None, layer, bias),
                layers.Mlp(sizes.hidden, sizes.intermediate_size, sizes.activation, kernels),
                self.make_norm,
            )
            for layer, bias in enumerate(biases)
        )
        self.conv: Any = None
        if (size := sizes.kernel_size) > 0:
            self.conv = nn.Conv1d(sizes.hidden, sizes.hidden, size, padding=size // 2, dtype=kernels.dtype)
            self.conv_act, self.conv_norm = activation(sizes.kernel_activation), self.make_norm()

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.load_named(weights, _NAMES)
        if self.sizes.width != self.sizes.hidden:
            self.project.load_weights([weights.layer("embeddings.embed_proj")])
        positions = weights.layer("encoder.rel_embeddings")["weight"][: 2 * self.sizes.span].float()
        if self.sizes.norms_positions:
            norm = self.make_norm().to(positions)  # in f32, where the positions are
            weights.load(norm, "encoder.LayerNorm")
            positions = norm(positions)
        for number, layer in enumerate(self.layers):
            layer.attention.score_bias.load(weights, positions, _NAMES.layer.format(number) + _SELF, self.dtype)
        if self.conv is not None:
            weights.load(self.conv, "encoder.conv.conv")
            weights.load(self.conv_norm, "encoder.conv.LayerNorm")

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]; `ConvLayer` is a convolution after the first layer."""
        first = x = self.embed(sequences)
        for number, layer in enumerate(self.layers):
            x = self.run(layer, x, sequences)
            if number == 0 and self.conv is not None:
                mixed = sequences.map(lambda rows: self.conv(rows.T).T, first)  # of each sequence by itself
                x = self.conv_norm(x + self.conv_act(mixed))
        return x
