"""Encoders with rotary positions and gated MLPs: ModernBERT, NomicBERT (v1.5 and v2), GTE (`NewModel`).

Source: transformers 5.23, `models/{modernbert,nomic_bert,gte}/modeling_*.py`. Tensor names are those of the published
checkpoints.
"""

from __future__ import annotations

from openvino import Node
from openvino import opset15 as op

from bei_core.engines.openvino import ops
from bei_core.engines.openvino.models.blocks import Inputs, Layers, gated_activation, multi_head_attention, split_evenly
from bei_core.engines.openvino.models.experts import mix_experts, route
from bei_core.engines.openvino.models.weights import Weights
from bei_core.engines.openvino.rope import make_rope
from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config, read_size
from bei_core.models.families import FULL, SLIDING


class ModernBert:
    """ModernBERT (Warner et al. 2024): pre-norm layers; two of three layers have a sliding window."""

    PREFIXES, ANCHOR = ("", "model."), "embeddings.tok_embeddings.weight"

    def __init__(self, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = read_size(config, "hidden_size")
        self._heads = split_evenly(self._hidden, read_size(config, "num_attention_heads"))
        self._eps = float(config.get("norm_eps", 1e-5))
        self._activation = str(config.get("hidden_activation", "gelu"))

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        window = int(self._config.get("local_attention", 128)) // 2 + 1  # `local_attention` counts both sides
        masks_and_ropes = {
            layer_type: (
                inputs.mask(window=size),
                make_rope(
                    self._config, self._heads.head_size, inputs.position_ids, self._max_len, layer_type=layer_type
                ),
            )
            for layer_type, size in ((FULL, None), (SLIDING, window))
        }
        hidden = ops.embedding(self._layers.weights.get(self.ANCHOR, None, self._hidden), inputs.input_ids)
        hidden = self._norm(hidden, "embeddings.norm")
        for layer in range(read_size(self._config, "num_hidden_layers")):
            prefix, (mask, rope) = f"layers.{layer}.", masks_and_ropes[self._layer_type(layer)]
            x = self._norm(hidden, prefix + "attn_norm") if layer else hidden
            bias = bool(self._config.get("attention_bias"))
            parts = self._layers.split_linear(x, prefix + "attn.Wqkv", (self._hidden,) * 3, bias=bias)
            attended = multi_head_attention(self._heads.split(parts), self._heads, mask, rope=rope)
            attended = self._layers.linear(attended, prefix + "attn.Wo", self._hidden, self._hidden, bias=bias)
            hidden = op.add(hidden, attended)
            hidden = op.add(hidden, self._mlp(self._norm(hidden, prefix + "mlp_norm"), prefix))
        return self._norm(hidden, "final_norm")

    def _layer_type(self, layer: int) -> str:
        types = self._config.get("layer_types")
        if types:
            return str(types[layer])
        return SLIDING if layer % int(self._config.get("global_attn_every_n_layers", 3)) else FULL

    def _mlp(self, x: Node, prefix: str) -> Node:
        inner, bias = read_size(self._config, "intermediate_size"), bool(self._config.get("mlp_bias"))
        gate, up = self._layers.split_linear(x, prefix + "mlp.Wi", (inner, inner), bias=bias)
        gated = gated_activation(gate, up, self._activation)
        return self._layers.linear(gated, prefix + "mlp.Wo", inner, self._hidden, bias=bias)

    def _norm(self, x: Node, name: str) -> Node:
        return self._layers.layer_norm(x, name, self._eps, bias=bool(self._config.get("norm_bias")))


class NomicBert:
    """Nomic Embed v1.5 (Nussbaum et al. 2024): BERT with rotary positions and SwiGLU; post-norm layers.

    Nomic Embed v2 (Nussbaum and Duderstadt 2025) has plain MLPs instead, and experts in every second layer.
    """

    PREFIXES, ANCHOR = ("", "bert.", "nomic_bert."), "embeddings.word_embeddings.weight"

    def __init__(self, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = read_size(config, "n_embd", "hidden_size")
        self._heads = split_evenly(self._hidden, read_size(config, "n_head", "num_attention_heads"))
        self._inner = read_size(config, "n_inner", "intermediate_size")
        self._eps = float(config.get("layer_norm_epsilon") or config.get("layer_norm_eps") or 1e-12)
        _expect(config, prenorm=False, parallel_block=False, rotary_emb_fraction=1.0, rotary_emb_interleaved=False)
        _expect(config, rotary_scaling_factor=None, num_shared_experts=0, moe_normalize_expert_weights=False)
        _expect(config, expert_choice_router=False)
        named = str(config.get("activation_function") or config.get("hidden_act") or "swiglu")
        self._activation = {"swiglu": "silu"}.get(named, named)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        mask = inputs.mask()
        rope = make_rope(self._config, self._heads.head_size, inputs.position_ids, self._max_len)
        get = self._layers.weights.get
        hidden = ops.embedding(get(self.ANCHOR, None, self._hidden), inputs.input_ids)
        if "embeddings.token_type_embeddings.weight" in self._layers.weights:
            types = get("embeddings.token_type_embeddings.weight", None, self._hidden)
            hidden = op.add(hidden, ops.embedding(types, inputs.type_ids))
        hidden = self._layers.layer_norm(hidden, "emb_ln", self._eps)
        for layer in range(read_size(self._config, "n_layer", "num_hidden_layers")):
            prefix = f"encoder.layers.{layer}."
            parts = self._layers.split_linear(hidden, prefix + "attn.Wqkv", (self._hidden,) * 3)
            attended = multi_head_attention(self._heads.split(parts), self._heads, mask, rope=rope)
            attended = self._layers.linear(attended, prefix + "attn.out_proj", self._hidden, self._hidden)
            hidden = self._layers.layer_norm(op.add(hidden, attended), prefix + "norm1", self._eps)
            inner = self._mlp(hidden, prefix + "mlp.")
            hidden = self._layers.layer_norm(op.add(hidden, inner), prefix + "norm2", self._eps)
        return hidden

    def _mlp(self, x: Node, prefix: str) -> Node:
        """A gated MLP (v1, v1.5), a plain one, or experts (v2), by the tensors that the checkpoint has."""
        if prefix + "router.layer.weight" in self._layers.weights:
            shares = route(x, self._layers, prefix + "router.layer", read_size(self._config, "moe_top_k"))
            return mix_experts(x, self._layers, prefix + "experts", shares, self._activation)
        if prefix + "fc11.weight" in self._layers.weights:
            up, gate = (self._layers.linear(x, prefix + n, self._hidden, self._inner) for n in ("fc11", "fc12"))
            inner = gated_activation(gate, up, self._activation)
        else:
            inner = ops.activation(self._activation)(self._layers.linear(x, prefix + "fc1", self._hidden, self._inner))
        return self._layers.linear(inner, prefix + "fc2", self._inner, self._hidden)


class Gte:
    """mGTE (Zhang et al. 2024, `Alibaba-NLP/new-impl`): BERT with rotary positions and gated MLPs; post-norm layers."""

    PREFIXES, ANCHOR = ("", "new.", "gte."), "embeddings.word_embeddings.weight"

    def __init__(self, config: Config, weights: Weights, max_len: int) -> None:
        self._config, self._max_len = config, max_len
        self._layers = Layers(weights)
        self._hidden = read_size(config, "hidden_size")
        self._heads = split_evenly(self._hidden, read_size(config, "num_attention_heads"))
        self._inner = read_size(config, "intermediate_size")
        self._eps = float(config.get("layer_norm_eps", 1e-12))
        _expect(config, position_embedding_type="rope", layer_norm_type="layer_norm", logn_attention_scale=False)

    def graph(self, inputs: Inputs) -> Node:
        """Token vectors f32[R, L, H]."""
        mask = inputs.mask()
        rope = make_rope(self._config, self._heads.head_size, inputs.position_ids, self._max_len)
        get = self._layers.weights.get
        hidden = ops.embedding(get(self.ANCHOR, None, self._hidden), inputs.input_ids)
        if int(self._config.get("type_vocab_size") or 0):
            types = get("embeddings.token_type_embeddings.weight", None, self._hidden)
            hidden = op.add(hidden, ops.constant(types[0]))  # transformers ignores type_ids
        hidden = self._layers.layer_norm(hidden, "embeddings.LayerNorm", self._eps)
        for layer in range(read_size(self._config, "num_hidden_layers")):
            prefix = f"encoder.layer.{layer}."
            parts = self._layers.split_linear(hidden, prefix + "attention.qkv_proj", (self._hidden,) * 3, bias=True)
            attended = multi_head_attention(self._heads.split(parts), self._heads, mask, rope=rope)
            attended = self._layers.linear(attended, prefix + "attention.o_proj", self._hidden, self._hidden, bias=True)
            hidden = self._layers.layer_norm(op.add(hidden, attended), prefix + "attn_ln", self._eps)
            up, gate = self._layers.split_linear(hidden, prefix + "mlp.up_gate_proj", (self._inner, self._inner))
            gated = gated_activation(gate, up, str(self._config.get("hidden_act", "gelu")))
            inner = self._layers.linear(gated, prefix + "mlp.down_proj", self._inner, self._hidden, bias=True)
            hidden = self._layers.layer_norm(op.add(hidden, inner), prefix + "mlp_ln", self._eps)
        return hidden


def _expect(config: Config, **supported: object) -> None:
    """Raises UnsupportedModelError if config.json sets one of these keys to another value than the supported one."""
    for name, value in supported.items():
        if config.get(name, value) not in {value, None}:
            raise UnsupportedModelError(f"config.json: {name} {config[name]!r} is not supported, only {value!r}")
