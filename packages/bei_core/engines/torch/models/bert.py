"""BERT-like encoders, with post-norm layers; `models/families.py` has the tensor names of each."""

from __future__ import annotations

from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.layers import Embedding, LayerNorm, Mlp, TransformerLayer, Weights
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.layouts import BertNames, BertSizes


class Transformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        self.layouts: tuple[BertNames, ...] = facts.of_family.layout
        self.sizes = sizes = BertSizes.of(self.layouts[0], facts.spec.config)
        width = int(facts.spec.config.get("embedding_size") or sizes.hidden)  # narrower than H in some ELECTRA models
        self.words = Embedding(sizes.vocab_size, width, kernels.dtype)
        self.positions = Embedding(sizes.num_positions, width, kernels.dtype)
        self.types = Embedding(sizes.num_types, width, kernels.dtype) if sizes.num_types else None
        self.norm = LayerNorm(width, sizes.eps, kernels.dtype)
        self.project = None
        if width != sizes.hidden:
            self.project = kernels.linear(width, sizes.hidden, "embeddings", bias=True)
        has_bias = self.layouts[0].relative_attention is not None
        self.score_bias = DistanceBias(sizes.num_heads, facts.spec.max_seq_len) if has_bias else None
        attention = AttentionSizes.of_encoder(sizes.hidden, sizes.num_heads)
        self.layers = nn.ModuleList(
            _Layer(
                kernels.attention(attention, None, layer, self.score_bias),
                Mlp(sizes.hidden, sizes.intermediate_size, sizes.activation, kernels),
                lambda: LayerNorm(sizes.hidden, sizes.eps, kernels.dtype),
            )
            for layer in range(sizes.num_layers)
        )

    def load(self, weights: Weights) -> None:
        """Loads all layers, with the names of the first layout whose tensors the checkpoint has."""
        fits = (known for known in self.layouts if known.embeddings_norm in weights)
        names = next(fits, self.layouts[0])
        self.words.load(weights, "embeddings.word_embeddings")
        self.positions.load(weights, "embeddings.position_embeddings")
        if self.types is not None:
            self.types.load(weights, "embeddings.token_type_embeddings")
        self.norm.load(weights, names.embeddings_norm)
        if self.project is not None:
            self.project.load_weights([weights.layer("embeddings_project")])
        if self.score_bias is not None and names.relative_attention is not None:
            self.score_bias.load(weights, names.relative_attention.removesuffix(".weight"))
        for number, layer in enumerate(self.layers):
            layer.load(weights, names, names.layer.format(number))

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]."""
        x = self.words(sequences.ids) + self.positions(self._position_rows(sequences))
        if self.types is not None:
            x = x + self.types(sequences.type_ids)
        x = self.norm(x)
        x = x if self.project is None else self.project(x)
        for layer in self.layers:
            x = layer(x, sequences)
        return x

    def _position_rows(self, sequences: Sequences) -> Tensor:
        """Returns i32[T]: the row of the position table for each token."""
        padding_id = self.sizes.padding_id
        if padding_id is None:
            return sequences.position_ids
        return sequences.count_up(sequences.ids != padding_id) + padding_id


class _Layer(TransformerLayer):
    def load(self, weights: Weights, names: BertNames, prefix: str) -> None:
        """Loads the layer."""
        qkv = (names.query, names.key, names.value) if names.qkv is None else (names.qkv,)
        layers = [prefix + name for name in (*qkv, names.attention_out)]
        self.attention.load(weights, layers, prefix)
        self.attention_norm.load(weights, prefix + names.attention_norm)
        self.mlp.load(weights, [prefix + names.up], prefix + names.down)
        self.mlp_norm.load(weights, prefix + names.out_norm)
