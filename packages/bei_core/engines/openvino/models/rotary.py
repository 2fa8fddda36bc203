"""Encoders with rotary positions and gated layers: ModernBERT, NomicBERT (v1.5), GTE (`NewModel`).

Written after transformers 5.23's `models/{modernbert,nomic_bert,gte}/modeling_*.py`; the names of tensors are those of
the published checkpoints.
"""

from __future__ import annotations

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, attend, even_heads, gated
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import rotation
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import Config, setting


class ModernBert:
    """Warner et al. 2024: norms before each part, two of three layers see only their surroundings."""

    PREFIXES, ANCHOR = ("", "model."), "embeddings.tok_embeddings.weight"

    def __init__(self, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = int(setting(config, "hidden_size"))
        self._heads = even_heads(self._hidden, int(setting(config, "num_attention_heads")))
        self._eps = float(config.get("norm_eps", 1e-5))
        self._activation = str(config.get("hidden_activation", "gelu"))

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        window = int(self._config.get("local_attention", 128)) // 2 + 1  # a half each way
        sights = {
            kind: (
                inputs.mask(window=size),
                rotation(self._config, self._heads.size, inputs.position_ids, self._max_len, layer_type=kind),
            )
            for kind, size in (("full_attention", None), ("sliding_attention", window))
        }
        hidden = ops.embedding(self._layers.weights.get(self.ANCHOR, None, self._hidden), inputs.input_ids)
        hidden = self._norm(hidden, "embeddings.norm")
        for layer in range(int(setting(self._config, "num_hidden_layers"))):
            prefix, (mask, turn) = f"layers.{layer}.", sights[self._kind(layer)]
            x = self._norm(hidden, prefix + "attn_norm") if layer else hidden
            bias = bool(self._config.get("attention_bias"))
            parts = self._layers.linears(x, prefix + "attn.Wqkv", (self._hidden,) * 3, bias=bias)
            mixed = attend(self._heads.split(parts), self._heads, mask, rotation=turn)
            hidden = op.add(
                hidden, self._layers.linear(mixed, prefix + "attn.Wo", self._hidden, self._hidden, bias=bias)
            )
            hidden = op.add(hidden, self._mlp(self._norm(hidden, prefix + "mlp_norm"), prefix))
        return self._norm(hidden, "final_norm")

    def _kind(self, layer: int) -> str:
        types = self._config.get("layer_types")
        if types:
            return str(types[layer])
        every = int(self._config.get("global_attn_every_n_layers", 3))
        return "sliding_attention" if layer % every else "full_attention"

    def _mlp(self, x: Node, prefix: str) -> Node:
        inner, bias = int(setting(self._config, "intermediate_size")), bool(self._config.get("mlp_bias"))
        gate, up = self._layers.linears(x, prefix + "mlp.Wi", (inner, inner), bias=bias)
        product = gated(gate, up, self._activation)
        return self._layers.linear(product, prefix + "mlp.Wo", inner, self._hidden, bias=bias)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._eps, bias=bool(self._config.get("norm_bias")))


class NomicBert:
    """Nussbaum et al. 2024: BERT with rotary positions and SwiGLU, norms after each part."""

    PREFIXES, ANCHOR = ("", "bert.", "nomic_bert."), "embeddings.word_embeddings.weight"

    def __init__(self, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = int(setting(config, "n_embd", "hidden_size"))
        self._heads = even_heads(self._hidden, int(setting(config, "n_head", "num_attention_heads")))
        self._inner = int(setting(config, "n_inner", "intermediate_size"))
        self._eps = float(config.get("layer_norm_epsilon") or config.get("layer_norm_eps") or 1e-12)
        _expect(config, prenorm=False, parallel_block=False, rotary_emb_fraction=1.0, rotary_emb_interleaved=False)
        _expect(config, activation_function="swiglu", rotary_scaling_factor=None, num_experts=0)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        mask = inputs.mask()
        turn = rotation(self._config, self._heads.size, inputs.position_ids, self._max_len)
        get = self._layers.weights.get
        hidden = ops.embedding(get(self.ANCHOR, None, self._hidden), inputs.input_ids)
        if "embeddings.token_type_embeddings.weight" in self._layers.weights:
            types = get("embeddings.token_type_embeddings.weight", None, self._hidden)
            hidden = op.add(hidden, ops.embedding(types, inputs.type_ids))
        hidden = self._layers.layer_norm(hidden, "emb_ln", self._eps)
        for layer in range(int(setting(self._config, "n_layer", "num_hidden_layers"))):
            prefix = f"encoder.layers.{layer}."
            parts = self._layers.linears(hidden, prefix + "attn.Wqkv", (self._hidden,) * 3)
            mixed = attend(self._heads.split(parts), self._heads, mask, rotation=turn)
            mixed = self._layers.linear(mixed, prefix + "attn.out_proj", self._hidden, self._hidden)
            hidden = self._layers.layer_norm(op.add(hidden, mixed), prefix + "norm1", self._eps)
            up, gate = (
                self._layers.linear(hidden, f"{prefix}mlp.{n}", self._hidden, self._inner) for n in ("fc11", "fc12")
            )
            inner = self._layers.linear(gated(gate, up, "silu"), prefix + "mlp.fc2", self._inner, self._hidden)
            hidden = self._layers.layer_norm(op.add(hidden, inner), prefix + "norm2", self._eps)
        return hidden


class Gte:
    """Zhang et al. 2024 (mGTE, `Alibaba-NLP/new-impl`): BERT with rotary positions and gated layers."""

    PREFIXES, ANCHOR = ("", "new.", "gte."), "embeddings.word_embeddings.weight"

    def __init__(self, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = int(setting(config, "hidden_size"))
        self._heads = even_heads(self._hidden, int(setting(config, "num_attention_heads")))
        self._inner = int(setting(config, "intermediate_size"))
        self._eps = float(config.get("layer_norm_eps", 1e-12))
        _expect(config, position_embedding_type="rope", layer_norm_type="layer_norm", logn_attention_scale=False)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        mask = inputs.mask()
        turn = rotation(self._config, self._heads.size, inputs.position_ids, self._max_len)
        get = self._layers.weights.get
        hidden = ops.embedding(get(self.ANCHOR, None, self._hidden), inputs.input_ids)
        if int(self._config.get("type_vocab_size") or 0):
            types = get("embeddings.token_type_embeddings.weight", None, self._hidden)
            hidden = op.add(hidden, ops.constant(types[0]))  # every token has the first type, as in transformers
        hidden = self._layers.layer_norm(hidden, "embeddings.LayerNorm", self._eps)
        for layer in range(int(setting(self._config, "num_hidden_layers"))):
            prefix = f"encoder.layer.{layer}."
            parts = self._layers.linears(hidden, prefix + "attention.qkv_proj", (self._hidden,) * 3, bias=True)
            mixed = attend(self._heads.split(parts), self._heads, mask, rotation=turn)
            mixed = self._layers.linear(mixed, prefix + "attention.o_proj", self._hidden, self._hidden, bias=True)
            hidden = self._layers.layer_norm(op.add(hidden, mixed), prefix + "attn_ln", self._eps)
            up, gate = self._layers.linears(hidden, prefix + "mlp.up_gate_proj", (self._inner, self._inner))
            product = gated(gate, up, str(self._config.get("hidden_act", "gelu")))
            inner = self._layers.linear(product, prefix + "mlp.down_proj", self._inner, self._hidden, bias=True)
            hidden = self._layers.layer_norm(op.add(hidden, inner), prefix + "mlp_ln", self._eps)
        return hidden


def _expect(config: Config, **known: object) -> None:
    """Raises UnsupportedModelError where config.json says something else than what is known here."""
    for name, value in known.items():
        if config.get(name, value) not in {value, None}:
            raise UnsupportedModelError(f"config.json: {name} {config[name]!r} is not supported, only {value!r}")
