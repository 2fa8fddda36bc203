"""BERT-like encoders, with post-norm layers; `families.BERTS` has the tensor names of each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bei_core.engines.tensorrt_llm.artifact import Facts
from bei_core.engines.tensorrt_llm.models.attention import AttentionSizes, load_attention, make_attention
from bei_core.engines.tensorrt_llm.models.heads import activation
from bei_core.engines.tensorrt_llm.models.layers import Embedding, LayerConfig, LayerNorm, Mlp, Weights
from bei_core.models.families import BERTS, BertNames, BertSizes


class BertTransformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, config: LayerConfig) -> None:
        super().__init__()
        self.names = BERTS[facts.family]
        self.sizes = sizes = BertSizes.of(self.names, facts.spec.config)
        width = int(facts.spec.config.get("embedding_size") or sizes.hidden)  # ELECTRA's may be narrower
        self.words = Embedding(sizes.vocab_size, width, config.dtype)
        self.positions = Embedding(sizes.num_positions, width, config.dtype)
        self.types = Embedding(sizes.num_types, width, config.dtype) if sizes.num_types else None
        self.norm = LayerNorm(width, sizes.eps, config.dtype)
        self.project = None
        if width != sizes.hidden:
            self.project = config.linear(width, sizes.hidden, "embeddings", bias=True)
        self.layers = nn.ModuleList(
            _Layer(self.names, sizes, facts.spec.max_seq_len, config, layer) for layer in range(sizes.num_layers)
        )

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.words.load(weights, "embeddings.word_embeddings")
        self.positions.load(weights, "embeddings.position_embeddings")
        if self.types is not None:
            self.types.load(weights, "embeddings.token_type_embeddings")
        self.norm.load(weights, "embeddings.LayerNorm")
        if self.project is not None:
            self.project.load_weights([weights.layer("embeddings_project")])
        for number, layer in enumerate(self.layers):
            layer.load(weights, self.names.layer.format(number))

    def forward(self, ids: Tensor, type_ids: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        """[T, H] of ids and type_ids i32[T] and position_ids i32[1, T], which count from 0 in each sequence."""
        x = self.words(ids) + self.positions(position_ids.reshape(-1) + self.sizes.first_position)
        if self.types is not None:
            x = x + self.types(type_ids)
        x = self.norm(x)
        x = x if self.project is None else self.project(x)
        for layer in self.layers:
            x = layer(x, position_ids, attn_metadata)
        return x


class _Layer(nn.Module):
    def __init__(self, names: BertNames, sizes: BertSizes, max_len: int, config: LayerConfig, number: int) -> None:
        super().__init__()
        self.names = names
        head_size = sizes.hidden // sizes.num_heads
        attention = AttentionSizes(
            hidden=sizes.hidden,
            num_heads=sizes.num_heads,
            num_kv_heads=sizes.num_heads,
            head_size=head_size,
            scale=head_size**-0.5,
            max_len=max_len,
            bias=True,
            out_bias=True,
            causal=False,
        )
        self.attention = make_attention(attention, None, config, number)
        self.attention_norm = LayerNorm(sizes.hidden, sizes.eps, config.dtype)
        self.mlp = Mlp(sizes.hidden, sizes.intermediate_size, activation(sizes.activation), config)
        self.norm = LayerNorm(sizes.hidden, sizes.eps, config.dtype)

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the layer."""
        names = self.names
        query, key, value, out = (prefix + name for name in (names.query, names.key, names.value, names.attention_out))
        load_attention(self.attention, weights, (query, key, value, out), prefix)
        self.attention_norm.load(weights, prefix + names.attention_norm)
        self.mlp.load(weights, prefix + names.up, prefix + names.down)
        self.norm.load(weights, prefix + names.out_norm)

    def forward(self, x: Tensor, position_ids: Tensor, attn_metadata: Any) -> Tensor:
        x = self.attention_norm(x + self.attention.attend(x, position_ids, attn_metadata))
        return self.norm(x + self.mlp(x))
