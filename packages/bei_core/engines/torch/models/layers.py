"""The parts of a transformer: norms, rotary embedding, MLPs, experts, and a layer of them.

`engines/batch` lists the letters of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights, empty, fill
from bei_core.models.rope import rope_tables
from bei_core.models.sizes import ExpertSizes, Sizes
from bei_core.models.tensor_names import TensorNames


def make_norm(sizes: Sizes, dtype: torch.dtype, width: int | None = None) -> nn.Module:
    """Returns a norm of [..., width]; the width is H by default."""
    width = width or sizes.hidden
    if not sizes.is_rms:
        return nn.LayerNorm(width, sizes.eps, bias=sizes.norm_bias, dtype=dtype)
    return _OffsetNorm(width, sizes.eps) if sizes.norm_offset else nn.RMSNorm(width, sizes.eps, dtype=dtype)


class _OffsetNorm(nn.RMSNorm):
    """RMSNorm that scales by 1 + the weight of the checkpoint (Gemma), in f32: bf16 is too coarse for this sum."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] of [..., H]."""
        return super().forward(x.float()).to(x.dtype)


def add_offset(model: nn.Module, offset: float) -> None:
    """Adds the offset to the loaded weights of all norms of a model that have one."""
    for module in model.modules():
        if isinstance(module, _OffsetNorm):
            module.weight += offset


class JinaNorms(nn.Module):
    """Norms of queries and keys over all heads; it takes the place of `NormAndRope`."""

    is_identity = False

    def __init__(self, query: nn.Module, key: nn.Module) -> None:
        super().__init__()
        self.query, self.key = query, key

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads the norms."""
        for norm, name in zip((self.query, self.key), names.qk_norms, strict=True):
            weights.load(norm, prefix + name)

    def forward(self, query_key: Tensor, position_ids: Tensor) -> Tensor:
        """Returns the queries and keys [T, 2 N, S] after the norms."""
        query, key = query_key.flatten(1).chunk(2, -1)
        return torch.cat([self.query(query), self.key(key)], -1).view_as(query_key)


class Rope(nn.Module):
    """Rotary position embedding for one type of layer, from tables computed in f64."""

    def __init__(self, sizes: Sizes, max_len: int, layer_type: str) -> None:
        super().__init__()
        cos, sin = rope_tables(sizes.config, sizes.heads.head_size, max_len, layer_type=layer_type)
        first, second = np.split(sin, 2, axis=1)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(np.concatenate([-first, second], 1)), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Returns queries or keys x f32[T, N, S] after rotation; element i of a head rotates with element i + S / 2."""
        cos, sin = self.cos[position_ids][:, None], self.sin[position_ids][:, None]
        swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)  # not torch.cat, which would be a kernel of its own
        return x * cos + swapped * sin


class Mlp(nn.Module):
    """down(act(up(x))); with a gate, down(act(gate(x)) * up(x)) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, sizes: Sizes, kernels: Kernels) -> None:
        super().__init__()
        self.act, self.is_gated, self.up_first = activation(sizes.activation), sizes.is_gated, False
        hidden, inner, fused = sizes.hidden, sizes.intermediate_size, "gate_up" if sizes.is_gated else None
        joined = inner * self.num_joined
        self.up_proj = kernels.linear(hidden, joined, "mlp", bias=sizes.mlp_bias, fused=fused, split="out")
        self.down_proj = kernels.linear(inner, hidden, "mlp", bias=sizes.mlp_out_bias, split="in")

    @property
    def num_joined(self) -> int:
        """The number of layers that are joined in `up_proj`."""
        return 2 if self.is_gated else 1

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads the linear layers."""
        self.up_first = names.up_first
        first = names.gated if self.is_gated else (names.up,)
        self.up_proj.load_weights(weights.layers([prefix + name for name in first], self.num_joined))
        self.down_proj.load_weights([weights.layer(prefix + names.down)])

    def forward(self, x: Tensor) -> Tensor:
        """[T, H]."""
        x = self.up_proj(x)
        if not self.is_gated:
            return self.down_proj(self.act(x))
        first, second = x.chunk(2, -1)
        gate, up = (second, first) if self.up_first else (first, second)
        return self.down_proj(self.act(gate) * up)


class Experts(nn.Module):
    """A mixture of experts (Shazeer et al. 2017): each token goes through the MLPs that a router chooses for it.

    All experts compute every token, as two matmuls, and the shares of experts that are not chosen are 0. So the shapes
    are fixed, as CUDA graphs need them.
    """

    def __init__(self, sizes: Sizes, experts: ExpertSizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes, self.act, hidden = experts, activation(sizes.activation), sizes.hidden
        self.router = empty(experts.count, hidden, dtype=dtype)
        self.w1, self.w2 = (empty(experts.count * sizes.intermediate_size, hidden, dtype=dtype) for _ in range(2))
        self.bias = empty(hidden, dtype=dtype)

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads router and experts."""
        fill(self.router, weights.layer(prefix + names.router), "weight")
        fill(self.bias, weights.layer(prefix + names.experts), "bias")
        for parameter, part in ((self.w1, "w1"), (self.w2, "w2")):
            fill(parameter, weights.layer(f"{prefix}{names.experts}.mlp"), part)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H]."""
        probabilities = F.linear(x, self.router).float().softmax(-1)
        chosen = probabilities.topk(self.sizes.top_k, -1)  # not normalised to a sum of 1
        shares = torch.zeros_like(probabilities).scatter(-1, chosen.indices, chosen.values)
        inner = self.act(F.linear(x, self.w1)).unflatten(-1, (self.sizes.count, -1))
        return (inner * shares[..., None].to(x.dtype)).flatten(1) @ self.w2 + self.bias


def make_mlp(sizes: Sizes, kernels: Kernels, number: int) -> nn.Module:
    """Returns the MLP of layer `number`: a gated or plain one, or experts (Nomic Embed v2)."""
    if sizes.experts is not None and number % sizes.experts.every == 1:
        return Experts(sizes, sizes.experts, kernels.dtype)
    return Mlp(sizes, kernels)


_NORMS = ("attention_norm", "mlp_norm", "attention_out_norm", "mlp_out_norm")


class TransformerLayer(nn.Module):
    """Attention and an MLP, each with a residual connection, and the norms that `TensorNames` names.

    See `TensorNames.is_pre_norm` for their order.
    """

    def __init__(
        self, attention: Any, mlp: nn.Module, names: TensorNames, number: int, make_norm: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.is_pre_norm, self.repeats_residual = attention, mlp, names.is_pre_norm, False
        for norm in _NORMS:
            setattr(self, norm, make_norm() if getattr(names, norm) else nn.Identity())
        if not names.has_attention_norm(number):
            self.attention_norm = nn.Identity()

    def add_jina_norms(self, make_norm: Callable[[], nn.Module]) -> None:
        """Adds what only the code model of JinaBERT has, which its config.json does not say."""
        self.attention.norm_and_rope = JinaNorms(make_norm(), make_norm())
        self.attention_out_norm, self.repeats_residual = make_norm(), True

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads the layer, whose tensors have a prefix before the names."""
        self.attention.load(weights, prefix, names)
        self.mlp.load(weights, prefix, names)
        for norm in _NORMS:
            weights.load(getattr(self, norm), prefix + getattr(names, norm))

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, H] for x [T, H]."""
        if self.is_pre_norm:
            x = x + self.attention_out_norm(self.attention(self.attention_norm(x), sequences))
            return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))
        mixed = self.attention_norm(x + self.attention(x, sequences))
        if self.repeats_residual:
            mixed = self.attention_out_norm(x + mixed)
        return self.mlp_norm(mixed + self.mlp(mixed))


def run_layer(layer: Any, *inputs: Any) -> Any:
    """Runs a layer. torch.compile takes this function, because a layer that held its compiled self would be a cycle."""
    return layer(*inputs)
