"""Pooling of packed sequences: from token vectors [T, H] to one row for each sequence, f32[B, H].

`PoolingMode` in `models/pooling.py` lists the modes. The code does not read values on the host, so a CUDA graph can
capture it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bei_core.engines.torch.models.sequences import Sequences
from bei_core.models.pooling import PoolingMode


def pool(mode: str, x: Tensor, sequences: Sequences) -> Tensor:
    """Returns f32[B, H] for token vectors [T, H]; `mode` is any name of a mode."""
    return POOLINGS[PoolingMode.named(mode)](x, sequences)


def sums(x: Tensor, sequences: Sequences) -> Tensor:
    """Returns f32[B, H]: the sum of each sequence's token vectors, without those that pooling leaves out."""
    return sequences.reduce(torch.where(sequences.pooled[:, None], x.float(), 0), "sum")


def _count(sequences: Sequences) -> Tensor:
    """Returns f32[B, 1]: the number of pooled tokens of each sequence, at least 1 to avoid a division by 0."""
    return sequences.reduce(sequences.pooled.float()[:, None], "sum").clamp(min=1)


def _weighted_mean(x: Tensor, sequences: Sequences) -> Tensor:
    """Returns f32[B, H]: the mean in which token i (from 0) has the weight i + 1 (Muennighoff 2022, SGPT)."""
    weights = (sequences.position_ids[:, None] + 1).float()
    return sums(x * weights, sequences) / sums(weights, sequences).clamp(min=1)


def _max(x: Tensor, sequences: Sequences) -> Tensor:
    return sequences.reduce(torch.where(sequences.pooled[:, None], x.float(), float("-inf")), "max")


POOLINGS: Mapping[PoolingMode, Callable[[Tensor, Sequences], Tensor]] = {
    PoolingMode.CLS: lambda x, sequences: x[sequences.first()].float(),
    PoolingMode.MAX: _max,
    PoolingMode.MEAN: lambda x, sequences: sums(x, sequences) / _count(sequences),
    PoolingMode.MEAN_SQRT_LEN: lambda x, sequences: sums(x, sequences) / _count(sequences).sqrt(),
    PoolingMode.WEIGHTED_MEAN: _weighted_mean,
    PoolingMode.LAST_TOKEN: lambda x, sequences: x[sequences.last()].float(),
}
