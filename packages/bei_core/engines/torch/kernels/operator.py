"""Attention as one operator of torch, so that torch.compile makes one graph of a whole layer.

The compiler does not look into an operator, so attention may choose its kernel and loop over sequences on the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bei_core.engines.torch.kernels.varlen import attend
from bei_core.engines.torch.models.sequences import BATCHES, Handles

LAYERS: Handles[Any] = Handles()  # all attention layers of this process


@torch.library.custom_op(
    "bei::attention", mutates_args=(), schema="(Tensor query_key, Tensor value, Tensor layer, Tensor batch) -> Tensor"
)
def attention(query_key: Tensor, value: Tensor, layer: Tensor, batch: Tensor) -> Tensor:
    """Returns [T, N * S] for queries and keys [T, N + K, S], values [T, K, S].

    `layer` and `batch` are the handles of an `Attention` in LAYERS, and of its `Sequences` in BATCHES.
    """
    found = LAYERS[layer]
    query, key = query_key.split([found.num_heads, found.num_kv_heads], 1)
    return attend(query, key, value, BATCHES[batch], found.sizes, found.score_bias).flatten(1).contiguous()


@attention.register_fake
def _(query_key: Tensor, value: Tensor, layer: Tensor, batch: Tensor) -> Tensor:
    num_heads = query_key.shape[1] - value.shape[1]
    return query_key.new_empty(query_key.shape[0], num_heads * query_key.shape[2])
