"""The encoders of T5 and mT5 (Raffel et al. 2020): pre-norm layers, relative position biases, no scaling of scores.

Source: transformers 5.23, `models/t5/modeling_t5.py`. As in `T5EncoderModel`, a decoder in the checkpoint is ignored.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models import layers
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.weights import Weights
from bei_core.models.configuration import read_number, read_size
from bei_core.models.heads import first_of
from bei_core.models.layouts import T5_BIAS, T5_WORDS, t5_activation
from bei_core.models.tensor_names import TensorNames


class Transformer(layers.Transformer):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        config = facts.spec.config
        hidden, inner, num_heads, size = (read_size(config, name) for name in ("d_model", "d_ff", "num_heads", "d_kv"))
        super().__init__(kernels, hidden, words=facts.spec.vocab_size)
        act, self.is_gated = t5_activation(config)
        self.max_distance = read_size(config, "relative_attention_max_distance", default=128)
        self.bias = DistanceBias(num_heads, facts.spec.max_seq_len)
        plain = {"bias": False, "out_bias": False, "causal": False}
        sizes = AttentionSizes(hidden, num_heads, num_heads, size, scale=1.0, **plain)
        make_norm = partial(nn.RMSNorm, hidden, read_number(config, "layer_norm_epsilon", 1e-6), dtype=kernels.dtype)
        self.layers = nn.ModuleList(
            layers.TransformerLayer(
                kernels.attention(sizes, None, layer, self.bias),
                layers.Mlp(hidden, inner, act, kernels, gated=self.is_gated, bias=False),
                make_norm,
                is_pre_norm=True,
            )
            for layer in range(read_size(config, "num_layers"))
        )
        self.final_norm = make_norm()

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.bias.load(weights, T5_BIAS, self.max_distance)
        attention, mlp = "0.SelfAttention.", "1.DenseReluDense."
        names = TensorNames(
            words=first_of(weights.whole, T5_WORDS).removesuffix(".weight"),
            layer="encoder.block.{}.layer.",
            qkv=(attention + "q", attention + "k", attention + "v"),
            out=attention + "o",
            attention_norm="0.layer_norm",
            up=(mlp + "wi_0", mlp + "wi_1") if self.is_gated else (mlp + "wi",),
            down=mlp + "wo",
            mlp_norm="1.layer_norm",
            final_norm="encoder.final_layer_norm",
        )
        self.load_named(weights, names)
