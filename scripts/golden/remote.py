"""Models whose published classes are not in transformers, computed from their formulas, one text at a time.

They are written for these goldens from the papers and from what text-embeddings-inference and vLLM compute, and share
no code with the engines. Modules have the names of the published tensors. Importing this module registers the classes,
so that transformers and sentence-transformers load them by `model_type`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaModel,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

Features: TypeAlias = Any  # inputs of a model that it does not use, or passes on


def named(**modules: nn.Module | nn.Parameter) -> nn.Module:
    """Returns a module that has these modules and parameters under these names, and no `forward`."""
    parent = nn.Module()
    for name, value in modules.items():
        setattr(parent, name, value)
    return parent


class JinaBertConfig(PretrainedConfig):  # type: ignore[misc]
    """config.json of jina-embeddings-v2, with another model_type: there it is "bert"."""

    model_type = "jina_bert"


class JinaBertPreTrained(PreTrainedModel):  # type: ignore[misc]
    """The common base of the model and the classifier."""

    config_class = JinaBertConfig
    base_model_prefix = "bert"

    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from the checkpoint."""


class JinaBertModel(JinaBertPreTrained):
    """The encoder of both published forms; the form "code" has norms of queries and keys (qk-post-norm)."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__(config)
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = named(
            word_embeddings=nn.Embedding(config.vocab_size, hidden),
            token_type_embeddings=nn.Embedding(config.type_vocab_size, hidden),
            LayerNorm=nn.LayerNorm(hidden, eps=eps),
        )
        layers = [self._make_layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = named(layer=nn.ModuleList(layers))
        self.pooler = named(dense=nn.Linear(hidden, hidden))
        self.post_init()

    def _make_layer(self, config: JinaBertConfig) -> nn.Module:
        hidden, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        attention = {name: nn.Linear(hidden, hidden) for name in ("query", "key", "value")}
        out = named(dense=nn.Linear(hidden, hidden), LayerNorm=nn.LayerNorm(hidden, eps=eps))
        norms: dict[str, nn.Module] = {}
        if config.is_code:
            norms = {name: nn.LayerNorm(hidden, eps=eps) for name in ("layer_norm_1", "layer_norm_2")}
            attention |= {name: nn.LayerNorm(hidden, eps=eps) for name in ("layer_norm_q", "layer_norm_k")}
            up, down = nn.Linear(hidden, 2 * inner, bias=False), nn.Linear(inner, hidden)
            mlp = named(up_gated_layer=up, down_layer=down)
        else:
            up, down = nn.Linear(hidden, 2 * inner, bias=False), nn.Linear(inner, hidden)
            mlp = named(gated_layers=up, wo=down, layernorm=nn.LayerNorm(hidden, eps=eps))
        return named(attention=named(self=named(**attention), output=out), mlp=mlp, **norms)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, **ignored: Features) -> BaseModelOutput:
        """Token vectors f32[1, n, H] of ids i64[1, n]."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        embeddings = self.embeddings
        x = embeddings.word_embeddings(input_ids) + embeddings.token_type_embeddings(types)
        x = embeddings.LayerNorm(x)
        for layer in self.encoder.layer:
            x = self._layer(layer, x)
        return BaseModelOutput(last_hidden_state=x)

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        attended = layer.attention.output.LayerNorm(layer.attention.output.dense(self._attend(layer, x)) + x)
        act = {"geglu": functional.gelu, "reglu": functional.relu}[self.config.feed_forward_type]
        if self.config.is_code:
            x = layer.layer_norm_1(x + attended)
            linear, gate = layer.mlp.up_gated_layer(x).chunk(2, dim=-1)
            return layer.layer_norm_2(x + layer.mlp.down_layer(linear * act(gate)))
        gate, linear = layer.mlp.gated_layers(attended).chunk(2, dim=-1)
        return layer.mlp.layernorm(attended + layer.mlp.wo(linear * act(gate)))

    def _attend(self, layer: nn.Module, x: Tensor) -> Tensor:
        own, heads = layer.attention.self, self.config.num_attention_heads
        query, key, value = own.query(x), own.key(x), own.value(x)
        if self.config.is_code:
            query, key = own.layer_norm_q(query), own.layer_norm_k(key)
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        positions = torch.arange(x.shape[1])
        distances = (positions[:, None] - positions[None, :]).abs()
        slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float64)
        scores = scores - (slopes[:, None, None] * distances).to(scores.dtype)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def alibi_slopes(heads: int) -> list[float]:
    """Returns the slope of each head (Press et al. 2022): a geometric series whose first term is its ratio."""
    if heads & (heads - 1) == 0:
        ratio = 2.0 ** (-8.0 / heads)
        return [ratio ** (head + 1) for head in range(heads)]
    lower = 2 ** int(math.log2(heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[::2][: heads - lower]


class JinaBertForSequenceClassification(JinaBertPreTrained):
    """The head of jina-reranker-v1."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__(config)
        self.bert = JinaBertModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, **inputs: Features) -> SequenceClassifierOutput:
        """Logits f32[1, labels]."""
        first = self.bert(**inputs).last_hidden_state[:, 0]
        return SequenceClassifierOutput(logits=self.classifier(self.bert.pooler.dense(first).tanh()))


class NomicMoeConfig(PretrainedConfig):  # type: ignore[misc]
    """config.json of nomic-embed-text-v2-moe, with another model_type: there it is "nomic_bert"."""

    model_type = "nomic_moe"
    attribute_map: ClassVar = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


class NomicMoeModel(PreTrainedModel):  # type: ignore[misc]
    """BERT with rotary positions, a plain MLP in even layers and experts in odd ones."""

    config_class = NomicMoeConfig
    base_model_prefix = "bert"

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__(config)
        hidden, eps = config.n_embd, config.layer_norm_epsilon
        self.embeddings = named(
            word_embeddings=nn.Embedding(config.vocab_size, hidden),
            token_type_embeddings=nn.Embedding(config.type_vocab_size, hidden),
        )
        self.emb_ln = nn.LayerNorm(hidden, eps=eps)
        self.encoder = named(layers=nn.ModuleList([self._make_layer(config, layer) for layer in range(config.n_layer)]))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from the checkpoint."""

    def _make_layer(self, config: NomicMoeConfig, number: int) -> nn.Module:
        hidden, inner, eps = config.n_embd, config.n_inner, config.layer_norm_epsilon
        bias = config.qkv_proj_bias
        attention = named(Wqkv=nn.Linear(hidden, 3 * hidden, bias=bias), out_proj=nn.Linear(hidden, hidden, bias=bias))
        if number % config.moe_every_n_layers == 1:
            weights = {name: nn.Parameter(torch.empty(config.num_experts * inner, hidden)) for name in ("w1", "w2")}
            experts = named(mlp=named(**weights), bias=nn.Parameter(torch.empty(hidden)))
            mlp = named(router=named(layer=nn.Linear(hidden, config.num_experts, bias=False)), experts=experts)
        else:
            fc1 = nn.Linear(hidden, inner, bias=config.mlp_fc1_bias)
            mlp = named(fc1=fc1, fc2=nn.Linear(inner, hidden, bias=config.mlp_fc2_bias))
        norms = {name: nn.LayerNorm(hidden, eps=eps) for name in ("norm1", "norm2")}
        return named(attn=attention, mlp=mlp, **norms)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, **ignored: Features) -> BaseModelOutput:
        """Token vectors f32[1, n, H] of ids i64[1, n]."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = self.embeddings.word_embeddings(input_ids) + self.embeddings.token_type_embeddings(types)
        x = self.emb_ln(x)
        for layer in self.encoder.layers:
            x = layer.norm1(x + self._attend(layer.attn, x))
            inner = self._experts(layer.mlp, x) if hasattr(layer.mlp, "router") else self._plain(layer.mlp, x)
            x = layer.norm2(x + inner)
        return BaseModelOutput(last_hidden_state=x)

    def _plain(self, mlp: nn.Module, x: Tensor) -> Tensor:
        return mlp.fc2(functional.gelu(mlp.fc1(x)))

    def _experts(self, mlp: nn.Module, x: Tensor) -> Tensor:
        """Runs each token through the experts with the largest probabilities, which are not normalised again."""
        probabilities = mlp.router.layer(x[0]).softmax(dim=-1)
        experts = self.config.num_experts
        w1, w2 = (weight.unflatten(0, (experts, -1)) for weight in (mlp.experts.mlp.w1, mlp.experts.mlp.w2))
        rows = []
        for token, shares in zip(x[0], probabilities, strict=True):
            chosen = shares.argsort(descending=True)[: self.config.moe_top_k]
            outputs = [shares[expert] * (functional.gelu(w1[expert] @ token) @ w2[expert]) for expert in chosen]
            rows.append(torch.stack(outputs).sum(dim=0) + mlp.experts.bias)
        return torch.stack(rows)[None]

    def _attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        heads = self.config.n_head
        parts = attention.Wqkv(x).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        query, key = self._rotate(query), self._rotate(key)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return attention.out_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotates each pair (i, i + S / 2) of a head by position * base^(-2 i / S), as complex numbers."""
        half = x.shape[-1] // 2
        angles = torch.arange(half, dtype=torch.float64) * (-math.log(self.config.rotary_emb_base) / half)
        turns = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * angles.exp()
        turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(
            torch.ones_like(turns), turns
        )
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


class LlamaBidirectionalConfig(LlamaConfig):  # type: ignore[misc]
    """config.json of NVIDIA's embedding models and rerankers."""

    model_type = "llama_bidirec"
    pooling: str = "avg"
    temperature: float = 1.0


class LlamaBidirectionalModel(LlamaModel):  # type: ignore[misc]
    """LlamaModel without a causal mask, which transformers leaves out if the config says so."""

    config_class = LlamaBidirectionalConfig

    def __init__(self, config: LlamaBidirectionalConfig) -> None:
        config.is_causal = getattr(config, "is_causal", False)
        super().__init__(config)


class LlamaBidirectionalForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """A linear layer over pooled token vectors, divided by the temperature."""

    config_class = LlamaBidirectionalConfig
    base_model_prefix = "model"

    def __init__(self, config: LlamaBidirectionalConfig) -> None:
        super().__init__(config)
        self.model = LlamaBidirectionalModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self, **inputs: Features) -> SequenceClassifierOutput:
        """Logits f32[1, labels]."""
        rows = self.model(**inputs).last_hidden_state
        pooled = {"avg": rows.mean(dim=1), "cls": rows[:, 0], "last": rows[:, -1]}[self.config.pooling]
        return SequenceClassifierOutput(logits=self.score(pooled) / self.config.temperature)


class Qwen3BidirectionalConfig(Qwen3Config):  # type: ignore[misc]
    """config.json of voyage-4-nano, with another model_type: there it is "qwen3"."""

    model_type = "qwen3_bidirectional"


class Qwen3BidirectionalModel(PreTrainedModel):  # type: ignore[misc]
    """Qwen3Model without a causal mask, then a projection of each token vector."""

    config_class = Qwen3BidirectionalConfig
    base_model_prefix = "qwen3"

    def __init__(self, config: Qwen3BidirectionalConfig) -> None:
        config.is_causal = getattr(config, "is_causal", False)
        super().__init__(config)
        self.model = Qwen3Model(config)
        self.linear = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self, **inputs: Features) -> BaseModelOutput:
        """Token vectors f32[1, n, num_labels]."""
        return BaseModelOutput(last_hidden_state=self.linear(self.model(**inputs).last_hidden_state))


for config_class, model_class in (
    (JinaBertConfig, JinaBertModel),
    (NomicMoeConfig, NomicMoeModel),
    (LlamaBidirectionalConfig, LlamaBidirectionalModel),
    (Qwen3BidirectionalConfig, Qwen3BidirectionalModel),
):
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, model_class)
AutoModelForSequenceClassification.register(JinaBertConfig, JinaBertForSequenceClassification)
AutoModelForSequenceClassification.register(LlamaBidirectionalConfig, LlamaBidirectionalForSequenceClassification)
