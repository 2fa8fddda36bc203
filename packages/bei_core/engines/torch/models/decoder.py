"""Decoder-only transformers; `models/families.py` has the switches of each family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.heads import F32Layers
from bei_core.engines.torch.models.layers import Embedding, GatedMlp, RmsNorm, Rope, TransformerLayer, Weights
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.layouts import PROJECTION, DecoderSizes, DecoderSwitches


class Transformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        self.switches: DecoderSwitches = facts.of_family.layout
        self.sizes = sizes = DecoderSizes.of(self.switches, facts.spec.config)
        self.embed_tokens = Embedding(facts.spec.vocab_size, sizes.hidden, kernels.dtype)
        ropes = {
            layer_type: Rope(sizes.config, sizes.head_size, facts.spec.max_seq_len, layer_type)
            for layer_type in dict.fromkeys(sizes.layer_types)
        }
        offset = 1.0 if self.switches.gemma else 0.0
        make_norm = partial(RmsNorm, sizes.hidden, sizes.eps, kernels.dtype, offset=offset)
        bias = bool(sizes.config.get("mlp_bias"))
        self.layers = nn.ModuleList(
            _Layer(
                kernels.attention(self._attention_sizes(facts, layer_type), ropes[layer_type], number),
                GatedMlp(sizes.hidden, sizes.intermediate_size, sizes.activation, kernels, bias=bias),
                make_norm,
                is_gemma=self.switches.gemma,
            )
            for number, layer_type in enumerate(sizes.layer_types)
        )
        self.norm = make_norm()
        self.projection: F32Layers | None = None

    def _attention_sizes(self, facts: Facts, layer_type: str) -> AttentionSizes:
        """Returns the sizes of the attention of a layer, without a window if it would cover the longest sequence."""
        switches, sizes = self.switches, self.sizes
        window, bias = sizes.window(switches, layer_type), bool(sizes.config.get("attention_bias"))
        return AttentionSizes(
            hidden=sizes.hidden,
            num_heads=sizes.num_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_size=sizes.head_size,
            scale=sizes.scale,
            bias=bias or switches.qkv_bias,
            out_bias=bias,
            causal=facts.mask == "causal",
            eps=sizes.eps if switches.qk_norm else None,
            offset=1.0 if switches.gemma else 0.0,
            window=None if window is None or window >= facts.spec.max_seq_len else window,
            soft_cap=sizes.soft_cap,
        )

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.embed_tokens.load(weights, "embed_tokens")
        for number, layer in enumerate(self.layers):
            layer.load(weights, f"layers.{number}.")
        self.norm.load(weights, "norm")
        names = [f"{PROJECTION}.{part}" for part in ("weight", "bias") if f"{PROJECTION}.{part}" in weights.whole]
        if names:
            self.projection = F32Layers({name: weights.whole[name] for name in names}, self.norm.weight.device)

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H], or [T, D] if the model projects them at the end. Token types are not used."""
        x = self.embed_tokens(sequences.ids)
        if self.switches.gemma:
            x = x * self.sizes.hidden**0.5
        for layer in self.layers:
            x = layer(x, sequences)
        x = self.norm(x)
        return x if self.projection is None else self.projection.linear(PROJECTION, x.float())


class _Layer(TransformerLayer):
    def __init__(self, attention: Any, mlp: nn.Module, make_norm: Callable[[], nn.Module], *, is_gemma: bool) -> None:
        super().__init__(attention, mlp, make_norm, is_pre_norm=True)
        self.out_norms = nn.ModuleList(make_norm() for _ in range(2 if is_gemma else 0))

    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the layer. In Gemma, the norm that other families have before the MLP is after attention."""
        layers = [f"{prefix}self_attn.{name}_proj" for name in "qkvo"]
        self.attention.load(weights, layers, f"{prefix}self_attn.")
        self.mlp.load(weights, (f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"), f"{prefix}mlp.down_proj")
        names = ["input_layernorm", "post_attention_layernorm"]
        if self.out_norms:
            names = ["input_layernorm", "pre_feedforward_layernorm", names[1], "post_feedforward_layernorm"]
        for name, norm in zip(names, (self.attention_norm, self.mlp_norm, *self.out_norms), strict=True):
            norm.load(weights, prefix + name)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        if not self.out_norms:
            return super().forward(x, sequences)
        x = x + self.out_norms[0](self.attention(self.attention_norm(x), sequences))
        return x + self.out_norms[1](self.mlp(self.mlp_norm(x)))
