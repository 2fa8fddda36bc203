"""DeBERTa v2 and v3 (He et al. 2021), after transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.layers import Embedding, LayerNorm, Mlp, TransformerLayer, Weights, empty, fill
from bei_core.engines.torch.models.relative import DisentangledBias, reach
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config, read_setting, read_size
from bei_core.models.distances import log_buckets


class Transformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        config = facts.spec.config
        self.hidden = read_size(config, "hidden_size")
        width = int(config.get("embedding_size") or self.hidden)
        self.eps, self.dtype = float(config.get("layer_norm_eps", 1e-7)), kernels.dtype
        self.words = Embedding(facts.spec.vocab_size, width, self.dtype)
        max_positions = int(read_setting(config, "max_position_embeddings"))
        has_positions, num_types = config.get("position_biased_input", True), int(config.get("type_vocab_size") or 0)
        self.positions = Embedding(max_positions, width, self.dtype) if has_positions else None
        self.types = Embedding(num_types, width, self.dtype) if num_types else None
        self.project = None
        if width != self.hidden:
            self.project = kernels.linear(width, self.hidden, "embeddings", bias=False)
        self.norm = LayerNorm(self.hidden, self.eps, self.dtype)
        max_distance, buckets = (
            int(config.get("max_relative_positions") or -1),
            int(config.get("position_buckets") or -1),
        )
        max_distance = max_distance if max_distance > 0 else max_positions
        self.span = buckets if buckets > 0 else max_distance  # P
        steps = reach(facts.spec.max_seq_len)
        steps = log_buckets(steps, buckets, max_distance) if buckets > 0 else steps
        rows = torch.from_numpy(np.clip(steps + self.span, 0, 2 * self.span - 1))
        self.norm_positions = "layer_norm" in str(config.get("norm_rel_ebd", "none")).lower()
        count = int(read_setting(config, "num_hidden_layers"))
        self.layers = nn.ModuleList(_Layer(facts, rows, kernels, number) for number in range(count))
        kernel_size = int(config.get("conv_kernel_size") or 0)
        self.conv = _Convolution(config, self.hidden, kernel_size, self.eps, self.dtype) if kernel_size else None

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        named = {"word": self.words, "position": self.positions, "token_type": self.types}
        for name, table in named.items():
            if table is not None:
                table.load(weights, f"embeddings.{name}_embeddings")
        if self.project is not None:
            self.project.load_weights([weights.layer("embeddings.embed_proj")])
        self.norm.load(weights, "embeddings.LayerNorm")
        positions = weights.layer("encoder.rel_embeddings")["weight"][: 2 * self.span].float()
        if self.norm_positions:
            norm = LayerNorm(self.hidden, self.eps, torch.float32).to(positions.device)
            norm.load(weights, "encoder.LayerNorm")
            positions = norm(positions)
        for number, layer in enumerate(self.layers):
            layer.load(weights, f"encoder.layer.{number}.", positions)
        if self.conv is not None:
            self.conv.load(weights)

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]."""
        x = self.words(sequences.ids)
        x = x if self.positions is None else x + self.positions(sequences.position_ids)
        x = x if self.types is None else x + self.types(sequences.type_ids)
        x = first = self.norm(x if self.project is None else self.project(x))
        for number, layer in enumerate(self.layers):
            x = layer(x, sequences)
            if number == 0 and self.conv is not None:
                x = self.conv(first, x, sequences)
        return x


class _Layer(TransformerLayer):
    def __init__(self, facts: Facts, rows: Tensor, kernels: Kernels, number: int) -> None:
        config = facts.spec.config
        hidden = read_size(config, "hidden_size")
        num_heads, eps = int(read_setting(config, "num_attention_heads")), float(config.get("layer_norm_eps", 1e-7))
        kinds = config.get("pos_att_type") or []
        kinds = frozenset(kind.strip() for kind in (kinds.lower().split("|") if isinstance(kinds, str) else kinds))
        scale = (hidden // num_heads * (1 + len(kinds & {"c2p", "p2c"}))) ** -0.5
        bias = DisentangledBias(rows, num_heads, scale, kinds & {"c2p", "p2c"})
        sizes = AttentionSizes.of_encoder(hidden, num_heads, facts.spec.max_seq_len, scale=scale)
        act, inner = activation(str(config.get("hidden_act", "gelu"))), int(read_setting(config, "intermediate_size"))
        super().__init__(
            kernels.attention(sizes, None, number, bias),
            Mlp(hidden, inner, act, kernels),
            lambda: LayerNorm(hidden, eps, kernels.dtype),
        )
        self.bias, self.dtype, self.shares = bias, kernels.dtype, bool(config.get("share_att_key"))

    def load(self, weights: Weights, prefix: str, positions: Tensor) -> None:
        """Loads the layer; `positions` is the table f32[2 * P, H] of relative positions."""
        own, attention = "" if self.shares else "pos_", f"{prefix}attention.self."
        names = [f"{attention}{name}_proj" for name in ("query", "key", "value")]
        self.attention.load(weights, [*names, f"{prefix}attention.output.dense"], prefix)
        projections = {"c2p": f"{attention}{own}key_proj", "p2c": f"{attention}{own}query_proj"}
        self.bias.load(weights, positions, projections, self.dtype)
        self.attention_norm.load(weights, prefix + "attention.output.LayerNorm")
        self.mlp.load(weights, [prefix + "intermediate.dense"], prefix + "output.dense")
        self.mlp_norm.load(weights, prefix + "output.LayerNorm")


class _Convolution(nn.Module):
    """Adds a convolution over the tokens of each sequence (`ConvLayer` in transformers)."""

    def __init__(self, config: Config, hidden: int, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        if int(config.get("conv_groups") or 1) != 1:
            raise UnsupportedModelError("config.json: conv_groups other than 1 is not supported")
        self.act = activation(str(config.get("conv_act", "tanh")))
        self.weight, self.bias = empty(hidden, hidden, size, dtype=dtype), empty(hidden, dtype=dtype)
        self.norm = LayerNorm(hidden, eps, dtype)

    def load(self, weights: Weights) -> None:
        """Loads the convolution and its norm."""
        for part, parameter in (("weight", self.weight), ("bias", self.bias)):
            fill(parameter, weights.layer("encoder.conv.conv"), part, "encoder.conv.conv")
        self.norm.load(weights, "encoder.conv.LayerNorm")

    def forward(self, x: Tensor, hidden: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, H]; `x` and `hidden` [T, H] are the input and the output of the first layer."""

        def convolve(rows: Tensor) -> Tensor:
            mixed = nn.functional.conv1d(rows.T[None], self.weight, self.bias, padding=self.weight.shape[2] // 2)
            return mixed[0].T

        return self.norm(hidden + self.act(sequences.map(convolve, x)))
