"""Layers of the transformers that all sets of kernels share: norms, embeddings, rotary embedding, feed-forward.

Parameters are created empty and filled by `load`. `engines/batch` lists the letters of shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bei_core.engines.torch.kernels.base import Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.errors import CheckpointError
from bei_core.models.rope import rope_tables

# Names of LayerNorm's tensors in checkpoints converted from TensorFlow.
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


class Layer(dict[str, Tensor]):
    """The tensors of one layer of a checkpoint, by the last part of their names, such as "weight" or "weight_scale"."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.name = name  # the whole name in the checkpoint

    def f32_weight(self) -> Tensor:
        """Returns the weight in f32. For a quantised layer it is multiplied by its scale."""
        weight = self["weight"][...].float()
        return weight * self["weight_scale"][...].float() if "weight_scale" in self else weight

    def split(self, count: int) -> list[Layer]:
        """Returns the `count` layers that are joined in this one; each has the same number of rows of the weight."""
        parts = {part: tensor[...] for part, tensor in self.items()}
        chunks = {part: x.chunk(count) if x.ndim else [x] * count for part, x in parts.items()}  # a scale is for all
        return [Layer(self.name, {part: chunks[part][number] for part in chunks}) for number in range(count)]


class Weights:
    """A checkpoint's tensors under one prefix, grouped by layer."""

    def __init__(self, tensors: Mapping[str, Tensor], *, anchor: str, prefixes: Sequence[str]) -> None:
        """Uses the first of `prefixes` under which the tensor `anchor` exists; raises CheckpointError if none fits."""
        prefix = next((prefix for prefix in prefixes if prefix + anchor in tensors), None)
        if prefix is None:
            raise CheckpointError(f"no tensor of these names: {', '.join(prefix + anchor for prefix in prefixes)}")
        self.whole, self._prefix = tensors, prefix  # by their whole names, with the prefix
        self._layers: dict[str, dict[str, str]] = {}
        for name in tensors:
            if name.startswith(prefix):
                layer, _, part = name.removeprefix(prefix).rpartition(".")
                self._layers.setdefault(layer, {})[_OLD_NAMES.get(part, part)] = name

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def layer(self, name: str) -> Layer:
        """Returns the tensors of a layer. Raises CheckpointError if there are none."""
        if name not in self._layers:
            raise CheckpointError(f"the checkpoint has no tensors of {name}")
        return Layer(self._prefix + name, {part: self.whole[known] for part, known in self._layers[name].items()})

    def layers(self, names: Sequence[str], count: int) -> list[Layer]:
        """Returns the layers `names`; a single name is a layer in which `count` layers are joined, and is split."""
        found = [self.layer(name) for name in names]
        return found[0].split(count) if len(found) == 1 else found


def empty(*shape: int, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """Returns a parameter with undefined values, which `fill` overwrites."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


def fill(parameter: Any, tensors: Mapping[str, Tensor], part: str, where: str) -> None:
    """Copies the tensor `part` into a parameter. Raises CheckpointError if it is missing or has another shape."""
    if part not in tensors or tuple(tensors[part].shape) != tuple(parameter.shape):
        found = tuple(tensors[part].shape) if part in tensors else "missing"
        raise CheckpointError(f"tensor {where}.{part} is {found}; config.json implies {tuple(parameter.shape)}")
    parameter.data.copy_(tensors[part][...])


class StoredLayer(nn.Module):
    """A module whose own parameters are the tensors of one layer of a checkpoint."""

    def load(self, weights: Weights, name: str) -> None:
        """Loads the layer `name`. Raises CheckpointError for a tensor that is missing or has the wrong shape."""
        layer = weights.layer(name)
        for part, parameter in self.named_parameters(recurse=False):
            fill(parameter, layer, part, name)


class Embedding(StoredLayer):
    """A lookup table of vectors."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty(num_rows, width, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns [T, H] for ids i32[T]."""
        return F.embedding(ids, self.weight)


class LayerNorm(StoredLayer):
    """LayerNorm (Ba et al. 2016)."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype, *, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty(width, dtype=dtype)
        self.bias = empty(width, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] of [..., H]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RmsNorm(StoredLayer):
    """RMSNorm (Zhang and Sennrich 2019).

    Gemma scales by 1 + weight (`offset` 1). It then computes in f32, because bf16 is too coarse for this sum.
    """

    def __init__(self, width: int, eps: float, dtype: torch.dtype, *, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = empty(width, dtype=torch.float32 if offset else dtype)

    def load(self, weights: Weights, name: str) -> None:
        """Loads the weight."""
        super().load(weights, name)
        self.weight.data += self.offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] of [..., H]."""
        wide = x.to(self.weight.dtype)
        return F.rms_norm(wide, self.weight.shape, self.weight, self.eps).to(x.dtype)


class Rope(nn.Module):
    """Rotary position embedding for one type of layer, from tables computed in f64."""

    def __init__(self, config: Mapping[str, Any], head_size: int, max_len: int, layer_type: str) -> None:
        super().__init__()
        cos, sin = rope_tables(config, head_size, max_len, layer_type=layer_type)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        half = head_size // 2
        self.register_buffer(
            "sin", torch.from_numpy(np.concatenate([-sin[:, :half], sin[:, half:]], 1)), persistent=False
        )

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Returns queries or keys x f32[T, N, S] after rotation; element i of a head rotates with element i + S / 2."""
        cos, sin = self.cos[position_ids][:, None], self.sin[position_ids][:, None]
        swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)  # not torch.cat, which would be a kernel of its own
        return x * cos + swapped * sin


class Mlp(nn.Module):
    """down(act(up(x)))."""

    num_joined, fused = 1, None  # see `Kernels.linear`

    def __init__(
        self, hidden: int, inner: int, act: str, kernels: Kernels, *, bias: bool = True, out_bias: bool | None = None
    ) -> None:
        """`act` names the activation; `bias` is that of the first layers, and by default `out_bias` of the last."""
        super().__init__()
        self.act = activation(act)
        width, out_bias = inner * self.num_joined, bias if out_bias is None else out_bias
        self.up_proj = kernels.linear(hidden, width, "mlp", bias=bias, fused=self.fused, split="out")
        self.down_proj = kernels.linear(inner, hidden, "mlp", bias=out_bias, split="in")

    def load(self, weights: Weights, up: Sequence[str], down: str) -> None:
        """Loads the linear layers; for a gated MLP, `up` are two layers of the checkpoint, or one that has both."""
        self.up_proj.load_weights(weights.layers(up, self.num_joined))
        self.down_proj.load_weights([weights.layer(down)])

    def forward(self, x: Tensor) -> Tensor:
        """[T, H]."""
        return self.down_proj(self.act(self.up_proj(x)))


class GatedMlp(Mlp):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    num_joined, fused = 2, "gate_up"  # type: ignore[assignment]
    up_first = False  # whether the checkpoint has up before gate

    def forward(self, x: Tensor) -> Tensor:
        """[T, H]."""
        first, second = self.up_proj(x).chunk(2, -1)
        gate, up = (second, first) if self.up_first else (first, second)
        return self.down_proj(self.act(gate) * up)


class TransformerLayer(nn.Module):
    """Attention and an MLP, each with a residual connection.

    Norms are after the sums, or before attention and MLP (`is_pre_norm`). The families add the method `load`.
    """

    def __init__(
        self, attention: Any, mlp: nn.Module, make_norm: Callable[[], nn.Module], *, is_pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.make_norm, self.is_pre_norm = attention, mlp, make_norm, is_pre_norm
        self.attention_norm, self.mlp_norm = make_norm(), make_norm()

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, H] for x [T, H]."""
        if self.is_pre_norm:
            x = x + self.attention(self.attention_norm(x), sequences)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, sequences))
        return self.mlp_norm(x + self.mlp(x))
