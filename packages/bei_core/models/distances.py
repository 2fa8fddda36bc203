"""Tables by the distance of two tokens, for attention with relative positions. Every engine reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bei_core.errors import UnsupportedModelError

Array = npt.NDArray[Any]


def alibi_slopes(num_heads: int) -> Array:
    """f64[N]: the factor of distances in each head (ALiBi, Press et al. 2022).

    2^(-8 i / N) for head i from 1, if N is a power of two; otherwise the slopes of the next lower power of two, then
    every second slope of the next higher one.
    """
    power = 1 << (num_heads.bit_length() - 1)
    lower = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    higher = 2.0 ** (-4 * np.arange(1, 2 * (num_heads - power), 2) / power)
    return np.concatenate([lower, higher])


def relative_buckets(relative: Array, num_buckets: int, max_distance: int) -> Array:
    """The bucket of each key - query, as `MPNetEncoder.relative_position_bucket` and T5's in transformers.

    Small distances have a bucket each; beyond them, the widths of the buckets grow logarithmically. Raises
    UnsupportedModelError for numbers with which this is not possible.
    """
    half = num_buckets // 2
    exact = half // 2
    if not 0 < exact < max_distance:
        raise UnsupportedModelError(
            f"relative attention with {num_buckets} buckets up to a distance of {max_distance} is not supported"
        )
    distance = np.abs(relative)
    far = exact + (
        np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(max_distance / exact) * (half - exact)
    ).astype(np.int64)
    return np.where(relative > 0, half, 0) + np.where(distance < exact, distance, np.minimum(far, half - 1))


def log_buckets(distance: Array, num_buckets: int, max_distance: int) -> Array:
    """The bucket of each query - key, as `make_log_bucket_position` of DeBERTa in transformers.

    Distances up to num_buckets / 2 have a bucket each, in each direction; larger ones share buckets logarithmically.
    """
    middle = num_buckets // 2
    size = np.abs(distance).astype(np.float32)
    with np.errstate(divide="ignore"):
        steps = np.log(size / middle) / math.log((max_distance - 1) / middle) * np.float32(middle - 1)
    far = np.where(size > middle, np.ceil(np.where(size > middle, steps, 0)) + middle, 0)
    return np.where(size <= middle, distance, far * np.sign(distance)).astype(np.int64)
