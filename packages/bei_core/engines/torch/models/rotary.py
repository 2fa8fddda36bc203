"""Encoders with rotary positions: ModernBERT, NomicBERT (v1.5, and v2 with experts), GTE (`NewModel`).

Source: transformers 5.23, `models/{modernbert,nomic_bert,gte}/modeling_*.py`. `models/rotary_layouts.py` has the
names of the tensors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models import layers
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights, empty, fill
from bei_core.models.configuration import read_whole
from bei_core.models.layouts import FULL, SLIDING, ExpertSizes, RotaryNames, RotarySizes, find_layout
from bei_core.models.rotary_layouts import check_experts
from bei_core.models.tensor_names import TensorNames


class Transformer(layers.Transformer):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        config = facts.spec.config
        self.layouts: tuple[RotaryNames, ...] = facts.of_family.layout
        names = self.layouts[0]
        sizes = RotarySizes.of(names, config)
        num_types = 0 if names.has_windows else read_whole(config, "type_vocab_size")  # ModernBERT has none
        super().__init__(kernels, sizes.hidden, words=facts.spec.vocab_size, types=num_types)
        self.has_one_type, self.sizes = names.has_one_type(num_types), sizes
        make_norm = partial(nn.LayerNorm, sizes.hidden, sizes.eps, bias=sizes.norm_bias, dtype=kernels.dtype)
        self.norm = make_norm()
        bias = sizes.attention_bias
        full = AttentionSizes.of_encoder(sizes.hidden, sizes.num_heads, bias=bias, out_bias=bias)
        attention = {FULL: full, SLIDING: replace(full, window=sizes.window)}
        ropes = {
            kind: layers.Rope(config, full.head_size, facts.spec.max_seq_len, kind)
            for kind in dict.fromkeys(sizes.layer_types)
        }
        self.layers = nn.ModuleList(
            layers.TransformerLayer(
                kernels.attention(attention[kind], ropes[kind], number),
                _mlp(sizes, kernels, number),
                make_norm,
                is_pre_norm=names.final_norm is not None,
            )
            for number, kind in enumerate(sizes.layer_types)
        )
        if names.final_norm is not None:
            self.final_norm = make_norm()
            self.layers[0].attention_norm = nn.Identity()  # ModernBERT's embeddings are normed already

    def load(self, weights: Weights) -> None:
        """Loads all layers, with the names of the first layout whose tensors the checkpoint has."""
        names = find_layout(self.layouts, weights.__contains__)
        check_experts(names, self.sizes, weights.__contains__)
        self.load_named(weights, names if self.sizes.is_gated else replace(names, up=("mlp.fc1",)))

    def embed(self, sequences: Sequences) -> Tensor:
        """Returns the input of the first layer, [T, H]."""
        if self.has_one_type:
            sequences = replace(sequences, type_ids=torch.zeros_like(sequences.type_ids))
        return super().embed(sequences)


def _mlp(sizes: RotarySizes, kernels: Kernels, number: int) -> nn.Module:
    """Returns the MLP of a layer: a gated one, a plain one, or experts (Nomic Embed v2)."""
    shape, experts = (sizes.hidden, sizes.intermediate_size, sizes.activation), sizes.experts
    if experts is not None and number % experts.every == 1:
        return Experts(*shape, experts, kernels.dtype)
    return layers.Mlp(*shape, kernels, gated=sizes.is_gated, bias=sizes.mlp_bias, out_bias=sizes.out_bias)


class Experts(nn.Module):
    """A mixture of experts (Shazeer et al. 2017): each token goes through the MLPs that a router chooses for it.

    All experts compute every token, as two matmuls, and the shares of experts that are not chosen are 0. So the shapes
    are fixed, as CUDA graphs need them.
    """

    def __init__(self, hidden: int, inner: int, act: str, sizes: ExpertSizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes, self.act = sizes, activation(act)
        self.router = empty(sizes.count, hidden, dtype=dtype)
        self.w1, self.w2 = (empty(sizes.count * inner, hidden, dtype=dtype) for _ in range(2))
        self.bias = empty(hidden, dtype=dtype)

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads router and experts, which are beside the linear layers that other layers have."""
        mlp = prefix + names.up[0].rpartition(".")[0]
        fill(self.router, weights.layer(f"{mlp}.router.layer"), "weight")
        fill(self.bias, weights.layer(f"{mlp}.experts"), "bias")
        for parameter, part in ((self.w1, "w1"), (self.w2, "w2")):
            fill(parameter, weights.layer(f"{mlp}.experts.mlp"), part)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H]."""
        probabilities = F.linear(x, self.router).float().softmax(-1)
        chosen = probabilities.topk(self.sizes.top_k, -1)  # not normalised to a sum of 1
        shares = torch.zeros_like(probabilities).scatter(-1, chosen.indices, chosen.values)
        inner = self.act(F.linear(x, self.w1)).unflatten(-1, (self.sizes.count, -1))
        return (inner * shares[..., None].to(x.dtype)).flatten(1) @ self.w2 + self.bias
