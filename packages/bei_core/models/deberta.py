"""What DeBERTa v2 and v3 have besides the layers of BERT: disentangled attention and a convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import Config, read_size, read_whole
from bei_core.models.distances import Array, log_buckets


@dataclass(frozen=True, slots=True)
class Disentangled:
    """Options of attention to content and relative position (He et al. 2021). P: positions in each direction."""

    num_buckets: int  # of relative positions; 0 for a model without buckets
    max_distance: int
    span: int  # P
    norms_positions: bool  # whether the table of relative positions has a norm
    kinds: frozenset[str]  # of "c2p" (content to position) and "p2c" (position to content)
    shares_projections: bool  # of queries and keys, with the relative positions
    kernel_size: int  # of the convolution after the first layer; 0 for a model without it
    kernel_activation: str

    @classmethod
    def of(cls, config: Config) -> Disentangled:
        """Reads config.json. Raises UnsupportedModelError for a missing size or a value that is not supported."""
        if not config.get("relative_attention"):
            raise UnsupportedModelError("config.json: relative_attention false is not supported")
        kernel_size = read_whole(config, "conv_kernel_size")
        if kernel_size and (read_whole(config, "conv_groups") or 1) != 1:
            raise UnsupportedModelError("config.json: conv_groups other than 1 is not supported")
        kinds = config.get("pos_att_type") or []
        kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list):
            raise UnsupportedModelError(f"config.json: pos_att_type {kinds!r} is not a text or a list")
        max_distance, num_buckets = (
            max(read_whole(config, name), 0) for name in ("max_relative_positions", "position_buckets")
        )
        max_distance = max_distance or read_size(config, "max_position_embeddings")
        return cls(
            num_buckets=num_buckets,
            max_distance=max_distance,
            span=num_buckets or max_distance,
            norms_positions="layer_norm" in str(config.get("norm_rel_ebd", "none")).lower(),
            kinds=frozenset(str(kind).strip() for kind in kinds) & {"c2p", "p2c"},
            shares_projections=bool(config.get("share_att_key")),
            kernel_size=kernel_size,
            kernel_activation=str(config.get("conv_act", "tanh")),
        )

    def projection(self, kind: str) -> str:
        """Returns the layer for the relative positions of one of `kinds`, among those of attention."""
        own = "" if self.shares_projections else "pos_"
        return own + {"c2p": "key_proj", "p2c": "query_proj"}[kind]

    def rows(self, distance: Array) -> Array:
        """Returns the row i64 of the table of relative positions for each distance (query - key)."""
        steps = log_buckets(distance, self.num_buckets, self.max_distance) if self.num_buckets else distance
        rows: Array = np.clip(steps + self.span, 0, 2 * self.span - 1)
        return rows
