"""DeBERTa v2 and v3 (He et al. 2021), after transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.layers import (
    Embedding,
    LayerNorm,
    Mlp,
    StoredLayer,
    TransformerLayer,
    Weights,
    empty,
)
from bei_core.engines.torch.models.relative import DisentangledBias, reach
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.deberta import DebertaSizes


class Transformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        self.sizes = sizes = DebertaSizes.of(facts.spec.config)
        self.words = Embedding(facts.spec.vocab_size, sizes.width, kernels.dtype)
        self.positions, self.types = (
            Embedding(count, sizes.width, kernels.dtype) if count else None
            for count in (sizes.num_positions, sizes.num_types)
        )
        self.project = None
        if sizes.width != sizes.hidden:
            self.project = kernels.linear(sizes.width, sizes.hidden, "embeddings", bias=False)
        self.norm = LayerNorm(sizes.hidden, sizes.eps, kernels.dtype)
        rows = torch.from_numpy(sizes.rows(reach(facts.spec.max_seq_len)))
        self.layers = nn.ModuleList(_Layer(sizes, rows, kernels, layer) for layer in range(sizes.num_layers))
        self.conv = _Convolution(sizes, kernels.dtype) if sizes.kernel_size else None

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        named = {"word": self.words, "position": self.positions, "token_type": self.types}
        for name, table in named.items():
            if table is not None:
                table.load(weights, f"embeddings.{name}_embeddings")
        if self.project is not None:
            self.project.load_weights([weights.layer("embeddings.embed_proj")])
        self.norm.load(weights, "embeddings.LayerNorm")
        positions = weights.layer("encoder.rel_embeddings")["weight"][: 2 * self.sizes.span].float()
        if self.sizes.norms_positions:
            norm = LayerNorm(self.sizes.hidden, self.sizes.eps, torch.float32).to(positions.device)
            norm.load(weights, "encoder.LayerNorm")
            positions = norm(positions)
        for number, layer in enumerate(self.layers):
            layer.load(weights, f"encoder.layer.{number}.", positions)
        if self.conv is not None:
            self.conv.load(weights, "encoder.conv.conv")
            self.conv.norm.load(weights, "encoder.conv.LayerNorm")

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]."""
        x = self.words(sequences.ids)
        x = x if self.positions is None else x + self.positions(sequences.position_ids)
        x = x if self.types is None else x + self.types(sequences.type_ids)
        x = first = self.norm(x if self.project is None else self.project(x))
        for number, layer in enumerate(self.layers):
            x = layer(x, sequences)
            if number == 0 and self.conv is not None:
                x = self.conv(first, x, sequences)
        return x


class _Layer(TransformerLayer):
    def __init__(self, sizes: DebertaSizes, rows: Tensor, kernels: Kernels, number: int) -> None:
        bias = DisentangledBias(rows, sizes.num_heads, sizes.scale, sizes.kinds)
        attention = AttentionSizes.of_encoder(sizes.hidden, sizes.num_heads, scale=sizes.scale)
        super().__init__(
            kernels.attention(attention, None, number, bias),
            Mlp(sizes.hidden, sizes.intermediate_size, sizes.activation, kernels),
            lambda: LayerNorm(sizes.hidden, sizes.eps, kernels.dtype),
        )
        self.bias, self.dtype, self.own = bias, kernels.dtype, "" if sizes.shares_projections else "pos_"

    def load(self, weights: Weights, prefix: str, positions: Tensor) -> None:
        """Loads the layer; `positions` is the table f32[2 * P, H] of relative positions."""
        attention = f"{prefix}attention.self."
        names = [f"{attention}{name}_proj" for name in ("query", "key", "value")]
        self.attention.load(weights, [*names, f"{prefix}attention.output.dense"], prefix)
        projections = {"c2p": f"{attention}{self.own}key_proj", "p2c": f"{attention}{self.own}query_proj"}
        self.bias.load(weights, positions, projections, self.dtype)
        self.attention_norm.load(weights, prefix + "attention.output.LayerNorm")
        self.mlp.load(weights, [prefix + "intermediate.dense"], prefix + "output.dense")
        self.mlp_norm.load(weights, prefix + "output.LayerNorm")


class _Convolution(StoredLayer):
    """Adds a convolution over the tokens of each sequence (`ConvLayer` in transformers)."""

    def __init__(self, sizes: DebertaSizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.act = activation(sizes.kernel_activation)
        self.weight = empty(sizes.hidden, sizes.hidden, sizes.kernel_size, dtype=dtype)
        self.bias = empty(sizes.hidden, dtype=dtype)
        self.norm = LayerNorm(sizes.hidden, sizes.eps, dtype)

    def forward(self, x: Tensor, hidden: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, H]; `x` and `hidden` [T, H] are the input and the output of the first layer."""

        def convolve(rows: Tensor) -> Tensor:
            mixed = nn.functional.conv1d(rows.T[None], self.weight, self.bias, padding=self.weight.shape[2] // 2)
            return mixed[0].T

        return self.norm(hidden + self.act(sequences.map(convolve, x)))
