"""Encoders of the BERT kind, norms after each part: one table of names and facts a family, one graph for all.

Written after transformers 5.23's `models/{bert,electra,roberta,xlm_roberta,distilbert,mpnet}/modeling_*.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.blocks import Config, Inputs, Layers, attend, even_heads
from bei_core.engines.openvino.weights import Weights
from bei_core.errors import UnsupportedModel
from bei_core.spec import first_position


@dataclass(frozen=True, slots=True)
class Family:
    """Where one family keeps its tensors, and how its config.json names its sizes."""

    prefixes: tuple[str, ...]
    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    out_norm: str = "output.LayerNorm"
    first_position: int | None = 0  # row of the position table for a text's first token; None: see spec
    has_types: bool = True
    relative_attention: str | None = None  # tensor of a bucketed table of biases
    config_names: Mapping[str, str] = field(default_factory=dict)

    def setting(self, config: Mapping[str, Any], name: str, default: object = None) -> Any:  # noqa: ANN401
        """A value of config.json by BERT's name for it."""
        return config.get(self.config_names.get(name, name), default)


BERTS: Mapping[str, Family] = {
    "bert": Family(prefixes=("", "bert.")),
    "electra": Family(prefixes=("", "electra.")),
    "roberta": Family(prefixes=("", "roberta."), first_position=None),
    "distilbert": Family(
        prefixes=("", "distilbert."),
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_out="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        out_norm="output_layer_norm",
        has_types=False,
        config_names={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
    ),
    "mpnet": Family(
        prefixes=("", "mpnet."),
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_out="attention.attn.o",
        attention_norm="attention.LayerNorm",
        first_position=2,  # its padding id is 1 whatever config.json says
        has_types=False,
        relative_attention="encoder.relative_attention_bias.weight",
    ),
}

ANCHOR = "embeddings.word_embeddings.weight"


class Bert:
    """One checkpoint of a family; `graph` makes its nodes."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        def setting(name: str, default: object = None) -> Any:  # noqa: ANN401
            value = family.setting(config, name, default)
            if value is None:
                raise UnsupportedModel(f"config.json has no `{family.config_names.get(name, name)}`")
            return value

        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedModel(f"position_embedding_type {config['position_embedding_type']!r} is not supported")
        self._family = family
        self._weights = weights
        self._layers = Layers(weights)
        self._hidden = int(setting("hidden_size"))
        self._num_layers = int(setting("num_hidden_layers"))
        self._heads = even_heads(self._hidden, int(setting("num_attention_heads")))
        self._inner = int(setting("intermediate_size"))
        self._eps = float(setting("layer_norm_eps", 1e-12))
        self._activation = ops.activation(str(setting("hidden_act")))
        self._vocab = int(setting("vocab_size"))
        self._types = int(setting("type_vocab_size", 2)) if family.has_types else 0
        self._table_len = int(setting("max_position_embeddings"))
        self._max_len = max_len
        self._first = first_position(config) if family.first_position is None else family.first_position

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        hidden = self._embed(inputs)
        bias = self._attention_bias(inputs)
        for layer in range(self._num_layers):
            hidden = self._layer(hidden, bias, self._family.layer.format(layer))
        return hidden

    def _embed(self, inputs: Inputs) -> Node:
        project = "embeddings_project.weight" in self._weights  # ELECTRA's embeddings may be narrower than its layers
        width = None if project else self._hidden
        words = ops.embedding(self._weights.get(ANCHOR, self._vocab, width), inputs.input_ids)
        table = self._weights.get("embeddings.position_embeddings.weight", self._table_len, width)
        total = op.add(words, ops.embedding(table[self._first :], inputs.position_ids))
        if self._types:
            types = self._weights.get("embeddings.token_type_embeddings.weight", self._types, width)
            total = op.add(total, ops.embedding(types, inputs.type_ids))
        normed = self._norm(total, "embeddings.LayerNorm")
        return self._linear(normed, "embeddings_project", None, self._hidden) if project else normed

    def _attention_bias(self, inputs: Inputs) -> Node:
        """What is added to the scores: f32[R, 1 or N, L, L]."""
        mask = inputs.mask()
        if self._family.relative_attention is None:
            return mask
        table = self._weights.get(self._family.relative_attention, None, self._heads.queries)
        return op.add(mask, ops.relative_bias(table, self._max_len, ops.row_length(inputs.input_ids)))

    def _layer(self, hidden: Node, bias: Node, prefix: str) -> Node:
        names, width = self._family, self._hidden
        parts = (self._linear(hidden, prefix + name, width, width) for name in (names.query, names.key, names.value))
        mixed = self._linear(
            attend(self._heads.split(parts), self._heads, bias), prefix + names.attention_out, width, width
        )
        hidden = self._norm(op.add(mixed, hidden), prefix + names.attention_norm)
        inner = self._activation(self._linear(hidden, prefix + names.up, width, self._inner))
        inner = self._linear(inner, prefix + names.down, self._inner, width)
        return self._norm(op.add(inner, hidden), prefix + names.out_norm)

    def _linear(self, x: Node, name: str, width_in: int | None, width_out: int) -> Node:
        return self._layers.linear(x, name, width_in, width_out, bias=True)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._eps)
