"""Sizes and options of DeBERTa v2 and v3, which every engine reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bei_core.errors import UnsupportedModelError
from bei_core.models.configuration import MAX_LAYERS, Config, read_number, read_size, read_whole
from bei_core.models.distances import Array, log_buckets


@dataclass(frozen=True, slots=True)
class DebertaSizes:
    """Sizes and options of DeBERTa v2 and v3, from config.json. P: relative positions in each direction."""

    hidden: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    eps: float
    activation: str
    width: int  # of the embeddings
    num_positions: int  # rows of the table of absolute positions; 0 for a model without it
    num_types: int
    num_buckets: int  # of relative positions; 0 for a model without buckets
    max_distance: int
    span: int  # P
    norms_positions: bool  # whether the table of relative positions has a norm
    kinds: frozenset[str]  # of "c2p" (content to position) and "p2c" (position to content)
    shares_projections: bool  # of queries and keys, with the relative positions
    scale: float  # of all kinds of scores
    kernel_size: int  # of the convolution after the first layer; 0 for a model without it
    kernel_activation: str

    @classmethod
    def of(cls, config: Config) -> DebertaSizes:
        """Reads config.json. Raises UnsupportedModelError for a missing size or a value that is not supported."""
        if not config.get("relative_attention"):
            raise UnsupportedModelError("config.json: relative_attention false is not supported")
        kernel_size = read_whole(config, "conv_kernel_size")
        if kernel_size and (read_whole(config, "conv_groups") or 1) != 1:
            raise UnsupportedModelError("config.json: conv_groups other than 1 is not supported")
        hidden, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
        kinds = config.get("pos_att_type") or []
        kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list):
            raise UnsupportedModelError(f"config.json: pos_att_type {kinds!r} is not a text or a list")
        known = frozenset(str(kind).strip() for kind in kinds) & {"c2p", "p2c"}
        max_distance, num_buckets = (
            max(read_whole(config, name), 0) for name in ("max_relative_positions", "position_buckets")
        )
        max_distance = max_distance or read_size(config, "max_position_embeddings")
        is_absolute = config.get("position_biased_input", True)
        return cls(
            hidden=hidden,
            num_layers=read_size(config, "num_hidden_layers", most=MAX_LAYERS),
            num_heads=num_heads,
            intermediate_size=read_size(config, "intermediate_size"),
            eps=read_number(config, "layer_norm_eps", 1e-7),
            activation=str(config.get("hidden_act", "gelu")),
            width=read_whole(config, "embedding_size") or hidden,
            num_positions=read_size(config, "max_position_embeddings") if is_absolute else 0,
            num_types=read_whole(config, "type_vocab_size"),
            num_buckets=num_buckets,
            max_distance=max_distance,
            span=num_buckets or max_distance,
            norms_positions="layer_norm" in str(config.get("norm_rel_ebd", "none")).lower(),
            kinds=known,
            shares_projections=bool(config.get("share_att_key")),
            scale=(hidden // num_heads * (1 + len(known))) ** -0.5,
            kernel_size=kernel_size,
            kernel_activation=str(config.get("conv_act", "tanh")),
        )

    def rows(self, distance: Array) -> Array:
        """Returns the row i64 of the table of relative positions for each distance (query - key)."""
        steps = log_buckets(distance, self.num_buckets, self.max_distance) if self.num_buckets else distance
        rows: Array = np.clip(steps + self.span, 0, 2 * self.span - 1)
        return rows
