"""JinaBERT v2 (Günther et al. 2023): BERT with ALiBi in both directions and gated MLPs; post-norm layers.

Two published classes have this name, and the names of their tensors differ: `jinaai/jina-bert-implementation`
(jina-embeddings-v2, jina-reranker-v1) and `jinaai/jina-bert-v2-qk-post-norm` (jina-embeddings-v2-base-code), which also
has norms of queries and keys and one more residual connection around attention.
"""

from __future__ import annotations

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, gated_activation, multi_head_attention, split_evenly
from bei_core.engines.openvino.models.weights import Weights
from bei_core.models.configuration import Config, read_size
from bei_core.models.distances import alibi_slopes
from bei_core.models.families import Family
from bei_core.models.layouts import jina_gate


class Transformer:
    """The graph of one checkpoint."""

    def __init__(self, family: Family, config: Config, weights: Weights, max_len: int) -> None:
        self._config = config
        self._words, self._layers = family.anchor, Layers(weights)
        self._hidden = read_size(config, "hidden_size")
        self._heads = split_evenly(self._hidden, read_size(config, "num_attention_heads"))
        self._inner = read_size(config, "intermediate_size")
        self._eps = float(config.get("layer_norm_eps", 1e-12))
        self._gate = jina_gate(config)
        self._is_code = "encoder.layer.0.mlp.up_gated_layer.weight" in weights

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        get = self._layers.weights.get
        hidden = ops.embedding(get(self._words, None, self._hidden), inputs.input_ids)
        types = get("embeddings.token_type_embeddings.weight", None, self._hidden)
        hidden = self._norm(op.add(hidden, ops.embedding(types, inputs.type_ids)), "embeddings.LayerNorm")
        bias = op.subtract(inputs.mask(), ops.distances(inputs.position_ids))  # ALiBi, before each head's slope
        for layer in range(read_size(self._config, "num_hidden_layers")):
            prefix = f"encoder.layer.{layer}."
            attended = self._attention(hidden, bias, prefix + "attention.")
            hidden = self._mlp_with_norms(hidden, attended, prefix) if self._is_code else self._mlp(attended, prefix)
        return hidden

    def _attention(self, x: Node, bias: Node, prefix: str) -> Node:
        """Attention, residual connection and norm."""
        query, key, value = (self._linear(x, f"{prefix}self.{name}") for name in ("query", "key", "value"))
        if self._is_code:
            query, key = self._norm(query, prefix + "self.layer_norm_q"), self._norm(key, prefix + "self.layer_norm_k")
        qkv = self._heads.split((query, key, value))
        attended = multi_head_attention(qkv, self._heads, bias, slopes=alibi_slopes(self._heads.num_heads))
        return self._norm(op.add(self._linear(attended, prefix + "output.dense"), x), prefix + "output.LayerNorm")

    def _mlp(self, x: Node, prefix: str) -> Node:
        gate, up = self._layers.split_linear(x, prefix + "mlp.gated_layers", (self._inner, self._inner))
        inner = self._layers.linear(self._gated(gate, up), prefix + "mlp.wo", self._inner, self._hidden, bias=True)
        return self._norm(op.add(inner, x), prefix + "mlp.layernorm")

    def _mlp_with_norms(self, hidden: Node, attended: Node, prefix: str) -> Node:
        """The MLP of the code model. Before the MLP, the layer's input is added once more."""
        x = self._norm(op.add(hidden, attended), prefix + "layer_norm_1")
        up, gate = self._layers.split_linear(x, prefix + "mlp.up_gated_layer", (self._inner, self._inner))
        down = prefix + "mlp.down_layer"
        inner = self._layers.linear(self._gated(gate, up), down, self._inner, self._hidden, bias=True)
        return self._norm(op.add(inner, x), prefix + "layer_norm_2")

    def _gated(self, gate: Node, up: Node) -> Node:
        return gated_activation(gate, up, self._gate)

    def _linear(self, x: Node, name: str) -> Node:
        return self._layers.linear(x, name, self._hidden, self._hidden, bias=True)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._eps)
