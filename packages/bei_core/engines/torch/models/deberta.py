"""What DeBERTa v2 and v3 (He et al. 2021) have besides the layers of BERT: disentangled attention, a convolution.

Source: transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bei_core.engines.torch.models.heads import activation
from bei_core.engines.torch.models.layers import make_norm
from bei_core.engines.torch.models.relative import distances, reach
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.engines.torch.models.weights import Weights
from bei_core.models.deberta import Disentangled
from bei_core.models.sizes import Sizes


class DisentangledBias(nn.Module):
    """Scores of content with relative position, for one layer. P is the number of positions each way."""

    def __init__(self, sizes: Sizes, options: Disentangled, max_len: int) -> None:
        super().__init__()
        self.heads, self.options = sizes.heads, options
        # By query - key + max_len - 1.
        self.register_buffer("rows", torch.from_numpy(options.rows(reach(max_len))), persistent=False)

    def load(self, weights: Weights, table: Tensor, prefix: str, dtype: torch.dtype) -> None:
        """Projects the position table f32[2 * P, H] with a layer under `prefix` for each kind.

        This is done once, because the result is the same for all batches.
        """
        for kind in self.options.kinds:
            layer = weights.layer(f"{prefix}attention.self.{self.options.projection(kind)}")
            projected = nn.functional.linear(table, layer.f32_weight(), layer["bias"].float())
            heads = projected.unflatten(-1, (self.heads.num_heads, -1)).transpose(0, 1)
            self.register_buffer(kind, heads.to(dtype), persistent=False)

    def forward(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """Returns f32[N, Q, L]; see `ScoreBias`."""
        index = distances(query, key, start) + len(self.rows) // 2
        rows = self.rows[index].expand(self.heads.num_heads, -1, -1)
        total = torch.zeros((), device=query.device)
        if "c2p" in self.options.kinds:
            total = total + (query @ self.c2p.transpose(1, 2)).float().gather(2, rows)
        if "p2c" in self.options.kinds:
            by_key = (key @ self.p2c.transpose(1, 2)).float().gather(2, rows.transpose(1, 2))
            total = total + by_key.transpose(1, 2)
        return total * self.heads.scale


def read_positions(weights: Weights, sizes: Sizes, options: Disentangled) -> Tensor:
    """Returns the table of relative positions f32[2 * P, H], after its norm, if it has one."""
    positions = weights.layer("encoder.rel_embeddings")["weight"][: 2 * options.span].float()
    if not options.norms_positions:
        return positions
    norm = make_norm(sizes, torch.float32).to(positions)
    weights.load(norm, "encoder.LayerNorm")
    return norm(positions)


class Convolution(nn.Module):
    """Adds to the output of the first layer a convolution of its input over the tokens of each sequence."""

    def __init__(self, sizes: Sizes, options: Disentangled, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, size = sizes.hidden, options.kernel_size
        self.conv = nn.Conv1d(hidden, hidden, size, padding=size // 2, dtype=dtype)
        self.act, self.norm = activation(options.kernel_activation), make_norm(sizes, dtype)

    def load(self, weights: Weights) -> None:
        """Loads the convolution and its norm."""
        weights.load(self.conv, "encoder.conv.conv")
        weights.load(self.norm, "encoder.conv.LayerNorm")

    def forward(self, x: Tensor, output: Tensor, sequences: Sequences) -> Tensor:
        """Returns [T, H] for the input and the output of the first layer, [T, H] each."""
        return self.norm(output + self.act(sequences.map(lambda rows: self.conv(rows.T).T, x)))
