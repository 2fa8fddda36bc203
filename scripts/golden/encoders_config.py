"""config.json as each family of encoders publishes it, and in the words of transformers 5 where that has other ones."""

from __future__ import annotations

from typing import Any

from scripts.golden.folder import CONFIGS as OLD_CONFIGS

COMMON: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
MODERN_BERT: dict[str, Any] = {
    "model_type": "modernbert",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 32,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-05,
    "local_attention": 16,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 96,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "position_embedding_type": "absolute",  # published so, though nothing reads it
    "tie_word_embeddings": True,
}
NOMIC_HUB = "nomic-ai/nomic-bert-2048--"
NOMIC: dict[str, Any] = {
    "model_type": "nomic_bert",
    "activation_function": "swiglu",
    "attn_pdrop": 0.0,
    "auto_map": {
        "AutoConfig": f"{NOMIC_HUB}configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": f"{NOMIC_HUB}modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": f"{NOMIC_HUB}modeling_hf_nomic_bert.NomicBertForPreTraining",
    },
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "eos_token_id": None,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 48,
    "n_layer": 2,
    "n_positions": 8192,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "type_vocab_size": 2,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
}
NEW_HUB = "Alibaba-NLP/new-impl--"
NEW: dict[str, Any] = {
    "model_type": "new",
    **COMMON,
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": f"{NEW_HUB}configuration.NewConfig",
        "AutoModel": f"{NEW_HUB}modeling.NewModel",
        "AutoModelForMaskedLM": f"{NEW_HUB}modeling.NewForMaskedLM",
        "AutoModelForSequenceClassification": f"{NEW_HUB}modeling.NewForSequenceClassification",
        "AutoModelForTokenClassification": f"{NEW_HUB}modeling.NewForTokenClassification",
    },
    "classifier_dropout": 0.0,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 8192,
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "rope_scaling": None,
    "rope_theta": 20000,
    "type_vocab_size": 1,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
DEBERTA: dict[str, Any] = {
    "model_type": "deberta-v2",
    **COMMON,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 96,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 32,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 16,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}
ELECTRA: dict[str, Any] = {
    "model_type": "electra",
    **COMMON,
    "classifier_dropout": None,
    "embedding_size": 32,
    "position_embedding_type": "absolute",
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
    "summary_type": "first",
    "summary_use_proj": True,
    "type_vocab_size": 2,
    "use_cache": True,
}
CAMEMBERT: dict[str, Any] = {
    "model_type": "camembert",
    **COMMON,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 64,
    "output_past": True,
    "type_vocab_size": 1,
}
# By what the names of a family's classes begin with.
CONFIGS: dict[str, dict[str, Any]] = {
    "Camembert": CAMEMBERT,
    "Electra": ELECTRA,
    "ModernBert": MODERN_BERT,
    "NomicBert": NOMIC,
    "New": NEW,
    "DebertaV2": DEBERTA,
    "Bert": OLD_CONFIGS["BertModel"],
    "Roberta": OLD_CONFIGS["RobertaModel"],
    "XLMRoberta": OLD_CONFIGS["XLMRobertaModel"],
    "DistilBert": OLD_CONFIGS["DistilBertModel"],
    "MPNet": OLD_CONFIGS["MPNetModel"],
}


SAME_IN_GTE = (
    "hidden_act",
    "hidden_size",
    "id2label",
    "intermediate_size",
    "label2id",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "problem_type",
    "type_vocab_size",
    "vocab_size",
)


def nomic_config(published: dict[str, Any]) -> dict[str, Any]:
    """What transformers' NomicBert has to be told to compute what a published config.json says."""
    labels = {key: published[key] for key in ("id2label", "label2id", "problem_type") if key in published}
    return labels | {
        "architectures": published["architectures"],
        "model_type": "nomic_bert",
        "hidden_act": {"swiglu": "silu"}[published["activation_function"]],
        "hidden_size": published["n_embd"],
        "intermediate_size": published["n_inner"],
        "layer_norm_eps": published["layer_norm_epsilon"],
        "max_position_embeddings": published["n_positions"],
        "num_attention_heads": published["n_head"],
        "num_hidden_layers": published["n_layer"],
        "pad_token_id": published["pad_token_id"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(published["rotary_emb_base"])},
        "type_vocab_size": published["type_vocab_size"],
        "vocab_size": published["vocab_size"],
    }


def gte_config(published: dict[str, Any]) -> dict[str, Any]:
    """What transformers' Gte, which is NewModel by another name, has to be told."""
    name = published["architectures"][0].replace("New", "Gte")
    config = {key: published[key] for key in SAME_IN_GTE if key in published}
    return config | {"architectures": [name], "model_type": "gte", "rope_parameters": ntk_rope(published)}


def ntk_rope(published: dict[str, Any]) -> dict[str, Any]:
    """NewModel's fixed NTK scaling (https://kexue.fm/archives/9706) in the words of transformers.

    The base grows by the factor, and every frequency shrinks by factor^(2 / head size), at every length.
    """
    theta, scaling = float(published["rope_theta"]), published["rope_scaling"]
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    factor, head = scaling["factor"], published["hidden_size"] // published["num_attention_heads"]
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head)}
