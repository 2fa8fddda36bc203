"""BERT's kin, norms after each part; `families.BERTS` has the names of each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bei_core.engines.tensorrt_llm.artifact import Facts
from bei_core.engines.tensorrt_llm.models.attention import Sizes, make_attention
from bei_core.engines.tensorrt_llm.models.layers import Config, Embedding, LayerNorm, Mlp, Weights
from bei_core.engines.tensorrt_llm.models.top import activation
from bei_core.models.families import BERTS, BertNames, BertSizes


class BertTransformer(nn.Module):
    """Token vectors of packed texts."""

    def __init__(self, facts: Facts, config: Config) -> None:
        super().__init__()
        self.names = BERTS[facts.family]
        self.sizes = sizes = BertSizes.of(self.names, facts.spec.config)
        width = int(facts.spec.config.get("embedding_size") or sizes.hidden)  # ELECTRA's may be narrower
        self.words = Embedding(sizes.vocab, width, config.dtype)
        self.positions = Embedding(sizes.table_len, width, config.dtype)
        self.types = Embedding(sizes.num_types, width, config.dtype) if sizes.num_types else None
        self.norm = LayerNorm(width, sizes.eps, config.dtype)
        self.project = None
        if width != sizes.hidden:
            self.project = config.linear(width, sizes.hidden, "embeddings", bias=True)
        self.layers = nn.ModuleList(
            _Layer(self.names, sizes, facts.spec.max_seq_len, config, at) for at in range(sizes.num_layers)
        )

    def load(self, weights: Weights) -> None:
        """Takes every layer's tensors."""
        self.words.load(weights, "embeddings.word_embeddings")
        self.positions.load(weights, "embeddings.position_embeddings")
        if self.types is not None:
            self.types.load(weights, "embeddings.token_type_embeddings")
        self.norm.load(weights, "embeddings.LayerNorm")
        if self.project is not None:
            self.project.load_weights([weights.of("embeddings_project")])
        for at, layer in enumerate(self.layers):
            layer.load(weights, self.names.layer.format(at))

    def forward(self, ids: Tensor, type_ids: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        """[T, H]; positions count from 0 in each text."""
        at = position_ids.reshape(-1)
        x = self.words(ids) + self.positions(at + self.sizes.first)
        if self.types is not None:
            x = x + self.types(type_ids)
        x = self.norm(x)
        x = x if self.project is None else self.project(x)
        for layer in self.layers:
            x = layer(x, position_ids, attn_metadata)
        return x


class _Layer(nn.Module):
    def __init__(self, names: BertNames, sizes: BertSizes, max_len: int, config: Config, at: int) -> None:
        super().__init__()
        self.names = names
        head = sizes.hidden // sizes.num_heads
        attention = Sizes(
            hidden=sizes.hidden,
            queries=sizes.num_heads,
            keys=sizes.num_heads,
            head=head,
            scale=head**-0.5,
            max_len=max_len,
            bias=True,
            out_bias=True,
            causal=False,
        )
        self.attention = make_attention(attention, None, config, at)
        self.attention_norm = LayerNorm(sizes.hidden, sizes.eps, config.dtype)
        self.mlp = Mlp(sizes.hidden, sizes.inner, activation(sizes.activation), config)
        self.norm = LayerNorm(sizes.hidden, sizes.eps, config.dtype)

    def load(self, weights: Weights, prefix: str) -> None:
        """Takes the layer's tensors."""
        names = self.names
        query, key, value, out = (prefix + name for name in (names.query, names.key, names.value, names.attention_out))
        self.attention.load(weights, (query, key, value, out), prefix)
        self.attention_norm.load(weights, prefix + names.attention_norm)
        self.mlp.load(weights, prefix + names.up, prefix + names.down)
        self.norm.load(weights, prefix + names.out_norm)

    def forward(self, x: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        x = self.attention_norm(x + self.attention.attend(x, position_ids, attn_metadata))
        return self.norm(x + self.mlp(x))
