"""Relative positions: biases by distance (MPNet, T5, ALiBi), and DeBERTa's attention to content and position.

Source: transformers 5.23, `models/{mpnet,t5,deberta_v2}/modeling_*.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bei_core.engines.torch.models.weights import Weights
from bei_core.models.deberta import DebertaSizes
from bei_core.models.distances import alibi_slopes, relative_buckets


def distances(query: Tensor, key: Tensor, start: int) -> Tensor:
    """Returns i64[Q, L]: the position of each query minus that of each key, for queries [N, Q, S], keys [N, L, S].

    `start` is the position of the first query.
    """
    queries, keys = (torch.arange(x.shape[1], device=x.device) for x in (query, key))
    return queries[:, None] + start - keys


def reach(max_len: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Returns i64[2 * max_len - 1]: every distance of two tokens, in order."""
    return np.arange(1 - max_len, max_len)


class DistanceBias(nn.Module):
    """Numbers that are added to attention scores by the distance of query and key, the same in all layers."""

    def __init__(self, num_heads: int, max_len: int) -> None:
        """The numbers are those of ALiBi, unless `load` replaces them."""
        super().__init__()
        self.max_len = max_len
        biases = -alibi_slopes(num_heads)[:, None] * np.abs(reach(max_len))
        self.register_buffer("biases", torch.from_numpy(biases.astype(np.float32)), persistent=False)

    def load(self, weights: Weights, name: str, max_distance: int = 128) -> None:
        """Loads a table [num_buckets, N] of a bias for each bucket of distances."""
        table = weights.layer(name)["weight"].float()
        buckets = torch.from_numpy(relative_buckets(-reach(self.max_len), len(table), max_distance))
        self.biases = table[buckets.to(table.device)].T.contiguous()

    def forward(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """Returns f32[N, Q, L]; see `ScoreBias`."""
        return self.biases[:, distances(query, key, start) + self.max_len - 1]


class DisentangledBias(nn.Module):
    """DeBERTa's scores of content with relative position, for one layer. P is the number of positions each way."""

    def __init__(self, rows: Tensor, sizes: DebertaSizes) -> None:
        """`rows` i64[2 * max_len - 1] are rows of the position table by query - key + max_len - 1."""
        super().__init__()
        self.num_heads, self.scale, self.kinds = sizes.num_heads, sizes.scale, sizes.kinds
        own = "" if sizes.shares_projections else "pos_"
        self.projections = {"c2p": f"{own}key_proj", "p2c": f"{own}query_proj"}
        self.register_buffer("rows", rows, persistent=False)

    def load(self, weights: Weights, table: Tensor, prefix: str, dtype: torch.dtype) -> None:
        """Projects the position table f32[2 * P, H] with a layer under `prefix` for each kind.

        This is done once, because the result is the same for all batches.
        """
        for kind in self.kinds:
            layer = weights.layer(prefix + self.projections[kind])
            projected = nn.functional.linear(table, layer.f32_weight(), layer["bias"].float())
            heads = projected.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
            self.register_buffer(kind, heads.to(dtype), persistent=False)

    def forward(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """Returns f32[N, Q, L]; see `ScoreBias`."""
        rows = self.rows[distances(query, key, start) + len(self.rows) // 2].expand(self.num_heads, -1, -1)
        total = torch.zeros((), device=query.device)
        if "c2p" in self.kinds:
            total = total + (query @ self.c2p.transpose(1, 2)).float().gather(2, rows)
        if "p2c" in self.kinds:
            by_key = (key @ self.p2c.transpose(1, 2)).float().gather(2, rows.transpose(1, 2))
            total = total + by_key.transpose(1, 2)
        return total * self.scale
