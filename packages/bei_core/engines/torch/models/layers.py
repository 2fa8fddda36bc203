"""What the pages share: embeddings, rotary embedding, feed-forward, a layer and the loop over all layers.

`engines/batch` lists the letters of shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bei_core.engines.torch.kernels.torch import Kernels
from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights
from bei_core.models.rope import rope_tables
from bei_core.models.tensor_names import TensorNames


class Rope(nn.Module):
    """Rotary position embedding for one type of layer, from tables computed in f64."""

    def __init__(self, config: Mapping[str, Any], head_size: int, max_len: int, layer_type: str) -> None:
        super().__init__()
        cos, sin = rope_tables(config, head_size, max_len, layer_type=layer_type)
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

    def __init__(
        self,
        hidden: int,
        inner: int,
        act: str,
        kernels: Kernels,
        *,
        gated: bool = False,
        bias: bool = True,
        out_bias: bool | None = None,
    ) -> None:
        """`act` names the activation; `bias` is that of the first layers, and by default `out_bias` of the last."""
        super().__init__()
        self.act, self.num_joined, self.up_first = activation(act), 2 if gated else 1, False
        out_bias, fused = bias if out_bias is None else out_bias, "gate_up" if gated else None
        self.up_proj = kernels.linear(hidden, inner * self.num_joined, "mlp", bias=bias, fused=fused, split="out")
        self.down_proj = kernels.linear(inner, hidden, "mlp", bias=out_bias, split="in")

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads the linear layers."""
        self.up_first = names.up_first
        self.up_proj.load_weights(weights.layers([prefix + name for name in names.up], self.num_joined))
        self.down_proj.load_weights([weights.layer(prefix + names.down)])

    def forward(self, x: Tensor) -> Tensor:
        """[T, H]."""
        x = self.up_proj(x)
        if self.num_joined == 1:
            return self.down_proj(self.act(x))
        first, second = x.chunk(2, -1)
        gate, up = (second, first) if self.up_first else (first, second)
        return self.down_proj(self.act(gate) * up)


class TransformerLayer(nn.Module):
    """Attention and an MLP, each with a residual connection.

    Norms are after the sums, or before attention and MLP (`is_pre_norm`). Gemma 2 and 3 also have norms after these
    two, and the code model of JinaBERT adds the layer's input once more after attention (`repeats_residual`), before a
    norm.
    """

    def __init__(
        self, attention: Any, mlp: Any, make_norm: Callable[[], nn.Module], *, is_pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.is_pre_norm, self.repeats_residual = attention, mlp, is_pre_norm, False
        self.attention_norm, self.mlp_norm = make_norm(), make_norm()
        self.attention_out_norm: nn.Module = nn.Identity()
        self.mlp_out_norm: nn.Module = nn.Identity()

    def load(self, weights: Weights, prefix: str, names: TensorNames) -> None:
        """Loads the layer, whose tensors have a prefix before the names."""
        self.attention.load(weights, prefix, names)
        self.mlp.load(weights, prefix, names)
        for norm in ("attention_norm", "mlp_norm", "attention_out_norm", "mlp_out_norm"):
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


class Transformer(nn.Module):
    """The base of the pages: tables of embeddings and a loop over layers.

    A page adds the layers and norms, and has a method `load(weights)` that loads it all.
    """

    layers: Any  # nn.ModuleList
    run: Any = staticmethod(run_layer)  # or the same compiled

    def __init__(self, kernels: Kernels, width: int, *, words: int, positions: int = 0, types: int = 0) -> None:
        """`width` is that of the tables; the numbers are their rows. There is no table of 0 rows."""
        super().__init__()
        self.project: Any = nn.Identity()  # of the embeddings, before their norm
        self.norm: nn.Module = nn.Identity()
        self.final_norm: nn.Module = nn.Identity()
        self.tables = nn.ModuleDict()
        for name, number in (("word", words), ("position", positions), ("token_type", types)):
            if number:
                self.tables[name] = nn.Embedding.from_pretrained(torch.empty(number, width, dtype=kernels.dtype))

    def load_named(self, weights: Weights, names: TensorNames) -> None:
        """Loads tables, norms and layers, by their names."""
        for name, table in self.tables.items():
            weights.load(table, names.words if name == "word" else f"embeddings.{name}_embeddings")
        for number, layer in enumerate(self.layers):
            layer.load(weights, names.layer.format(number), names)
        weights.load(self.norm, names.embedding_norm)
        weights.load(self.final_norm, names.final_norm or "")

    def embed(self, sequences: Sequences) -> Tensor:
        """Returns the input of the first layer: the sum of each token's rows of the tables, projected and normed."""
        rows = {"word": sequences.ids, "position": sequences.position_ids, "token_type": sequences.type_ids}
        return self.norm(self.project(reduce(torch.add, (table(rows[name]) for name, table in self.tables.items()))))

    def forward(self, sequences: Sequences) -> Tensor:
        """Returns token vectors [T, H]."""
        x = self.embed(sequences)
        for layer in self.layers:
            x = self.run(layer, x, sequences)
        return self.final_norm(x)
