"""The types of the values of config.json that are read without a check of their own."""

from __future__ import annotations

from typing import Annotated

import msgspec

from bei_core.models.configuration import Config
from bei_core.models.sentence.settings import convert

_Number = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)] | bool | None  # not NaN, which is not in any range
_Whole = Annotated[float, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | bool | None
_Theta = Annotated[float, msgspec.Meta(gt=1, le=1e30)] | None


class _Rope(msgspec.Struct):
    """`rope_parameters` or `rope_scaling`, of all layers or of each type of layer."""

    full_attention: _Rope | None = None
    sliding_attention: _Rope | None = None
    rope_theta: _Theta = None
    factor: _Number = None
    original_max_position_embeddings: _Number = None
    low_freq_factor: _Number = None
    high_freq_factor: _Number = None
    beta_fast: _Number = None
    beta_slow: _Number = None
    attention_factor: _Number = None
    mscale: _Number = None
    mscale_all_dim: _Number = None


class _Config(msgspec.Struct):
    """config.json; a size that every model has is checked where it is read."""

    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    rope_theta: _Theta = None
    global_rope_theta: _Theta = None
    local_rope_theta: _Theta = None
    rope_local_base_freq: _Theta = None
    rotary_emb_base: _Theta = None
    layer_norm_eps: _Number = None
    layer_norm_epsilon: _Number = None
    norm_eps: _Number = None
    rms_norm_eps: _Number = None
    attn_logit_softcapping: _Number = None
    query_pre_attn_scalar: _Number = None
    max_position_embeddings: _Number = None
    n_positions: _Number = None
    conv_groups: _Whole = None
    conv_kernel_size: _Whole = None
    embedding_size: _Whole = None
    global_attn_every_n_layers: _Whole = None
    local_attention: _Whole = None
    max_relative_positions: _Whole = None
    max_window_layers: _Whole = None
    pad_token_id: _Whole = None
    position_buckets: _Whole = None
    sliding_window: _Whole = None
    sliding_window_pattern: _Whole = None
    type_vocab_size: _Whole = None
    activation_function: str | None = None
    problem_type: str | None = None
    layer_types: list[str] | None = None
    pos_att_type: str | list[str] | None = None


def check_types(config: Config) -> None:
    """Raises CheckpointError naming a value of config.json that has another type, or is out of range."""
    convert(config, _Config, "config.json")
