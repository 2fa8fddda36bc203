"""Decoder-only transformers; `models/families.py` has the switches of each family."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts, attention_of
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models import layers
from bei_core.engines.torch.models.heads import F32Layers
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights
from bei_core.models.layouts import PROJECTION, DecoderSizes, DecoderSwitches


class Transformer(layers.Transformer):
    """Token vectors of packed sequences; [T, D] if the model projects them at the end. Token types are not used."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        switches: DecoderSwitches = facts.of_family.layout
        sizes, attention = DecoderSizes.of(switches, facts.spec.config), attention_of(facts)
        super().__init__(kernels, sizes.hidden, words=facts.spec.vocab_size)
        self.switches, self.hidden = switches, sizes.hidden
        ropes = {
            layer_type: layers.Rope(sizes.config, sizes.head_size, facts.spec.max_seq_len, layer_type)
            for layer_type in attention
        }
        make_norm = partial(nn.RMSNorm, sizes.hidden, sizes.eps, dtype=kernels.dtype)
        if switches.gemma:
            make_norm = partial(_GemmaNorm, sizes.hidden, sizes.eps, dtype=torch.float32)
        act, bias = sizes.activation, bool(sizes.config.get("mlp_bias"))
        self.layers = nn.ModuleList(
            layers.TransformerLayer(
                kernels.attention(attention[layer_type], ropes[layer_type], number),
                layers.Mlp(sizes.hidden, sizes.intermediate_size, act, kernels, gated=True, bias=bias),
                make_norm,
                is_pre_norm=True,
            )
            for number, layer_type in enumerate(sizes.layer_types)
        )
        self.final_norm = make_norm()
        if switches.out_norms:
            for layer in self.layers:
                layer.attention_out_norm, layer.mlp_out_norm = make_norm(), make_norm()
        self.projection: F32Layers | None = None

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.load_named(weights, self.switches.names)
        for module in self.modules():
            if isinstance(module, _GemmaNorm):
                module.weight += 1
        projection = (f"{PROJECTION}.{part}" for part in ("weight", "bias"))
        if tensors := {name: weights.whole[name] for name in projection if name in weights.whole}:
            self.projection = F32Layers(tensors, self.final_norm.weight.device)

    def embed(self, sequences: Sequences) -> Tensor:
        """Returns the input of the first layer, [T, H]."""
        x = super().embed(sequences)
        return x * self.hidden**0.5 if self.switches.gemma else x

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H] or [T, D]."""
        x = super().forward(sequences)
        return x if self.projection is None else self.projection.linear(PROJECTION, x.float())


class _GemmaNorm(nn.RMSNorm):
    """RMSNorm that scales by 1 + the weight of the checkpoint, in f32, because bf16 is too coarse for this sum."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] of [..., H]."""
        return super().forward(x.float()).to(x.dtype)
