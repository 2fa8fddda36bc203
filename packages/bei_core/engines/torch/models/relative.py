"""Biases of attention scores by the distance of two tokens (MPNet, T5, ALiBi).

Source: transformers 5.23, `models/{mpnet,t5}/modeling_*.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bei_core.engines.torch.models.weights import Weights
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

    def load(self, weights: Weights, name: str, max_distance: int) -> None:
        """Loads a table [num_buckets, N] of a bias for each bucket of distances."""
        table = weights.layer(name)["weight"].float()
        buckets = torch.from_numpy(relative_buckets(-reach(self.max_len), len(table), max_distance))
        self.biases = table[buckets.to(table.device)].T.contiguous()

    def forward(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """Returns f32[N, Q, L]; see `ScoreBias`."""
        return self.biases[:, distances(query, key, start) + self.max_len - 1]
