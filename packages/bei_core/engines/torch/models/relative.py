"""Relative positions: MPNet's bias, and DeBERTa's attention to content and position (He et al. 2021).

Source: transformers 5.23, `models/mpnet/modeling_mpnet.py` and `models/deberta_v2/modeling_deberta_v2.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bei_core.engines.torch.models.layers import Weights


def distances(length: int, device: torch.device) -> Tensor:
    """Returns i64[L, L]: the position of the query (first axis) minus the position of the key (second axis)."""
    index = torch.arange(length, device=device)
    return index[:, None] - index


class RelativeBias(nn.Module):
    """MPNet's bias of attention scores by the distance of query and key, the same in all layers."""

    MAX_DISTANCE = 128

    def __init__(self, max_len: int) -> None:
        super().__init__()
        self.max_len = max_len

    def load(self, weights: Weights, name: str) -> None:
        """Loads the table [num_buckets, N], and makes from it the biases f32[N, 2 * max_len - 1] of all distances."""
        table = weights.layer(name)["weight"].float()
        buckets = self._buckets(torch.arange(1 - self.max_len, self.max_len), len(table))
        self.register_buffer("biases", table[buckets.to(table.device)].T.contiguous(), persistent=False)

    def _buckets(self, distance: Tensor, num_buckets: int) -> Tensor:
        """Returns the bucket i64 of each distance (query - key), with one bucket for each small distance.

        Buckets of larger distances are logarithmic. Keys after the query have the upper half of the buckets.
        """
        half = num_buckets // 2
        exact, size = half // 2, distance.abs()
        steps = torch.log(size.clamp(min=1).float() / exact) / math.log(self.MAX_DISTANCE / exact) * (half - exact)
        far = (exact + steps.long()).clamp(max=half - 1)
        return torch.where(distance < 0, half, 0) + torch.where(size < exact, size, far)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """f32[N, L, L] for queries and keys [N, L, S]."""
        return self.biases[:, distances(query.shape[1], query.device) + self.max_len - 1]


class DisentangledBias(nn.Module):
    """DeBERTa's scores of content with relative position, for one layer. P is the number of positions each way."""

    def __init__(self, rows: Tensor, num_heads: int, scale: float, kinds: frozenset[str]) -> None:
        """`rows` i64[2 * max_len - 1] are rows of the position table by query - key + max_len - 1."""
        super().__init__()
        self.num_heads, self.scale, self.kinds = num_heads, scale, kinds
        self.register_buffer("rows", rows, persistent=False)

    def load(self, weights: Weights, table: Tensor, names: dict[str, str], dtype: torch.dtype) -> None:
        """Projects the position table f32[2 * P, H] with the layer `names[kind]` for each kind.

        This is done once, because the result is the same for all batches.
        """
        for kind in self.kinds:
            layer = weights.layer(names[kind])
            projected = nn.functional.linear(table, layer.f32_weight(), layer["bias"].float())
            heads = projected.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
            self.register_buffer(kind, heads.to(dtype), persistent=False)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """f32[N, L, L] for queries and keys [N, L, S]."""
        length = query.shape[1]
        rows = self.rows[distances(length, query.device) + len(self.rows) // 2].expand(self.num_heads, -1, -1)
        total = torch.zeros((), device=query.device)
        if "c2p" in self.kinds:
            total = total + (query @ self.c2p.transpose(1, 2)).float().gather(2, rows)
        if "p2c" in self.kinds:
            by_key = (key @ self.p2c.transpose(1, 2)).float().gather(2, rows.transpose(1, 2))
            total = total + by_key.transpose(1, 2)
        return total * self.scale


def log_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Returns the bucket i64 of each distance, as `make_log_bucket_position` in transformers.

    Each distance up to num_buckets / 2 in each direction has its own bucket. Beyond that, buckets are logarithmic.
    """
    middle = num_buckets // 2
    size = distance.abs().float()
    steps = torch.log(size.clamp(min=middle) / middle) / math.log((max_distance - 1) / middle) * (middle - 1)
    return torch.where(size <= middle, distance, (steps.ceil().long() + middle) * distance.sign())
