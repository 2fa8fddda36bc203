"""The layouts of encoders with rotary positions, by the names of the published checkpoints and of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bei_core.errors import UnsupportedModelError
from bei_core.models.layouts import RotaryNames, RotarySizes

MODERNBERT = RotaryNames(
    words="embeddings.tok_embeddings",
    embedding_norm="embeddings.norm",
    layer="layers.{}.",
    qkv=("attn.Wqkv",),
    out="attn.Wo",
    attention_norm="attn_norm",
    up=("mlp.Wi",),
    down="mlp.Wo",
    mlp_norm="mlp_norm",
    up_first=False,
    final_norm="final_norm",
    has_windows=True,
    activation=("hidden_activation", "gelu"),
    default_eps=1e-5,
    attention_bias="attention_bias",
    mlp_bias="mlp_bias",
    out_bias="mlp_bias",
    norm_bias="norm_bias",
)
NOMIC = RotaryNames(
    embedding_norm="emb_ln",
    layer="encoder.layers.{}.",
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    attention_norm="norm1",
    up=("mlp.fc11", "mlp.fc12"),
    down="mlp.fc2",
    mlp_norm="norm2",
    activation=("activation_function", "swiglu"),
    supported={
        "prenorm": False,
        "parallel_block": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_scaling_factor": None,
        "rotary_emb_scale_base": None,
        "causal": False,
        "use_rms_norm": False,
        "num_shared_experts": 0,
        "moe_normalize_expert_weights": False,
        "expert_choice_router": False,
    },
)
GTE = RotaryNames(
    embedding_norm="embeddings.LayerNorm",
    layer="encoder.layer.{}.",
    qkv=("attention.qkv_proj",),
    out="attention.o_proj",
    attention_norm="attn_ln",
    up=("mlp.up_gate_proj",),
    down="mlp.down_proj",
    mlp_norm="mlp_ln",
    only_first_type=True,
    attention_bias=True,
    out_bias=True,
    supported={"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False},
)
JINA_V3 = RotaryNames(
    embedding_norm="emb_ln",
    layer="encoder.layers.{}.",
    qkv=("mixer.Wqkv",),
    out="mixer.out_proj",
    attention_norm="norm1",
    up=(),
    down="mlp.fc2",
    mlp_norm="norm2",
    default_eps=1e-5,
    attention_bias=True,
    mlp_bias=True,
    out_bias=True,
)


def native(names: RotaryNames) -> RotaryNames:
    """Returns the layout with the names of transformers' own class, as `save_original_format=False` writes them.

    transformers also keeps these names when it saves a model that it read from such a file.
    """
    gated = bool(names.up)
    return replace(
        names,
        embedding_norm="embeddings.LayerNorm",
        layer="layers.{}.",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.o_proj",
        attention_norm="post_attention_layernorm",
        up=("mlp.up_proj", "mlp.gate_proj") if gated else (),
        down="mlp.down_proj" if gated else names.down,
        mlp_norm="post_mlp_layernorm",
    )


def check_experts(names: RotaryNames, sizes: RotarySizes, has_layer: Callable[[str], bool]) -> None:
    """Raises UnsupportedModelError if a checkpoint has experts, of which config.json says nothing."""
    if sizes.experts is None and has_layer(names.layer.format(1) + "mlp.router.layer"):  # the first layer with experts
        raise UnsupportedModelError("config.json has no `num_experts`, but the checkpoint has a router of experts")
