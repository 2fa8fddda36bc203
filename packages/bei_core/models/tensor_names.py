"""`TensorNames`: the names of a transformer's layers in checkpoints. Layouts (`models/layouts.py`) extend it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """The names of the layers of a transformer, without the prefix of the checkpoint.

    From `qkv` to `mlp_out_norm` they are names within one of its layers; "" and None: there is no such layer.
    """

    words: str = "embeddings.word_embeddings"
    embedding_norm: str = ""
    layer: str  # the prefix of one layer of the transformer, with {} for its number
    qkv: tuple[str, ...]  # query, key and value, or one layer that has the three
    out: str  # of attention
    attention_norm: str
    up: tuple[str, ...]  # the first of the MLP: one, or gate and up, or one layer that has both
    down: str
    mlp_norm: str
    up_first: bool = False  # whether up is before gate
    qk_norms: str = ""  # the prefix of the norms of queries and keys
    attention_out_norm: str = ""
    mlp_out_norm: str = ""
    final_norm: str | None = None  # the last norm of a family whose norms come before attention and MLP (pre-norm)


LLAMA = TensorNames(
    words="embed_tokens",
    layer="layers.{}.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    attention_norm="input_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    mlp_norm="post_attention_layernorm",
    qk_norms="self_attn.",
    final_norm="norm",
)
# In Gemma 2 and 3, the norm that other families have before the MLP is after attention.
GEMMA = replace(
    LLAMA,
    mlp_norm="pre_feedforward_layernorm",
    attention_out_norm="post_attention_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)
