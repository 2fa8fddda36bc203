"""The encoders of T5 and mT5 (Raffel et al. 2020): pre-norm layers, relative position biases, no scaling of scores.

Source: transformers 5.23, `models/t5/modeling_t5.py`. As in `T5EncoderModel`, a decoder in the checkpoint is ignored.
"""

from __future__ import annotations

from torch import Tensor, nn

from bei_core.engines.torch.folder import Facts
from bei_core.engines.torch.kernels.base import AttentionSizes, Kernels
from bei_core.engines.torch.models.layers import Embedding, GatedMlp, Mlp, RmsNorm, TransformerLayer, Weights
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.configuration import read_size
from bei_core.models.heads import first_of
from bei_core.models.layouts import T5_BIAS, T5_WORDS, t5_activation


class Transformer(nn.Module):
    """Token vectors of packed sequences."""

    def __init__(self, facts: Facts, kernels: Kernels) -> None:
        super().__init__()
        config, max_len = facts.spec.config, facts.spec.max_seq_len
        hidden, inner, num_heads, size = (read_size(config, name) for name in ("d_model", "d_ff", "num_heads", "d_kv"))
        eps, (act, is_gated) = float(config.get("layer_norm_epsilon", 1e-6)), t5_activation(config)
        plain = {"bias": False, "out_bias": False, "causal": False}
        sizes = AttentionSizes(hidden, num_heads, num_heads, size, scale=1.0, **plain)
        make_mlp = GatedMlp if is_gated else Mlp
        self.max_distance = read_size(config, "relative_attention_max_distance", default=128)
        self.words = Embedding(facts.spec.vocab_size, hidden, kernels.dtype)
        self.bias = DistanceBias(num_heads, max_len)
        self.layers = nn.ModuleList(
            _Layer(
                kernels.attention(sizes, None, layer, self.bias),
                make_mlp(hidden, inner, act, kernels, bias=False),
                lambda: RmsNorm(hidden, eps, kernels.dtype),
                is_pre_norm=True,
            )
            for layer in range(read_size(config, "num_layers"))
        )
        self.norm = RmsNorm(hidden, eps, kernels.dtype)

    def load(self, weights: Weights) -> None:
        """Loads all layers."""
        self.words.load(weights, first_of(weights.whole, T5_WORDS).removesuffix(".weight"))
        self.bias.load(weights, T5_BIAS, self.max_distance)
        for number, layer in enumerate(self.layers):
            layer.load(weights, f"encoder.block.{number}.layer.")
        self.norm.load(weights, "encoder.final_layer_norm")

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]."""
        x = self.words(sequences.ids)
        for layer in self.layers:
            x = layer(x, sequences)
        return self.norm(x)


class _Layer(TransformerLayer):
    def load(self, weights: Weights, prefix: str) -> None:
        """Loads the layer."""
        self.attention.load(weights, [f"{prefix}0.SelfAttention.{name}" for name in "qkvo"], prefix)
        self.attention_norm.load(weights, prefix + "0.layer_norm")
        mlp = prefix + "1.DenseReluDense."
        up = [mlp + name for name in (("wi_0", "wi_1") if isinstance(self.mlp, GatedMlp) else ("wi",))]
        self.mlp.load(weights, up, mlp + "wo")
        self.mlp_norm.load(weights, prefix + "1.layer_norm")
