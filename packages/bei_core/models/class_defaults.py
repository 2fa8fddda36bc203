"""The values that a class of transformers has for keys which config.json lacks; transformers 5, `configuration_*.py`.

Only keys that BEI reads. A value in config.json replaces them, also if it is null.
"""

from __future__ import annotations

from collections.abc import Mapping

from bei_core.models.configuration import Config

_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_BERT: Config = {
    **_SIZES,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
_T5: Config = {
    "d_kv": 64,
    "d_model": 512,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
}
_T5_BASE = {**_T5, "d_ff": 2048, "feed_forward_proj": "relu", "num_heads": 8, "num_layers": 6, "vocab_size": 32128}
_MT5 = {**_T5, "d_ff": 1024, "feed_forward_proj": "gated-gelu", "num_heads": 6, "num_layers": 8, "vocab_size": 250112}
_DECODER: Config = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
_QWEN = {
    **_DECODER,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "vocab_size": 151936,
}
_GEMMA: Config = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
}

# By the beginning of the class name.
CLASS_DEFAULTS: Mapping[str, Config] = {
    "Bert": _BERT,
    "HF_ColBERT": _BERT,
    "Contriever": _BERT,
    "Ernie": _BERT,
    "Camembert": _BERT,
    "XLMRoberta": _BERT,
    "Roberta": {**_BERT, "vocab_size": 50265},
    "Electra": {
        **_BERT,
        "embedding_size": 128,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
    },
    "MPNet": {**{key: value for key, value in _BERT.items() if key != "type_vocab_size"}, "vocab_size": 30527},
    "DistilBert": {
        "activation": "gelu",
        "dim": 768,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
        "n_heads": 12,
        "n_layers": 6,
        "vocab_size": 30522,
    },
    "DebertaV2": {
        "hidden_act": "gelu",
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "layer_norm_eps": 1e-7,
        "max_position_embeddings": 512,
        "num_attention_heads": 24,
        "num_hidden_layers": 24,
        "vocab_size": 128100,
    },
    "ModernBert": {
        **_SIZES,
        "global_rope_theta": 160_000.0,
        "hidden_activation": "gelu",
        "intermediate_size": 1152,
        "local_rope_theta": 10_000.0,
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "num_hidden_layers": 22,
        "vocab_size": 50368,
    },
    "Gte": {
        **_SIZES,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 8192,
        "rope_theta": 160_000.0,
        "type_vocab_size": 1,
        "vocab_size": 250048,
    },
    "NomicBert": {"rotary_emb_base": 1000.0},
    "JinaEmbeddingsV3": {
        **_SIZES,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8194,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "rope_theta": 20_000.0,
        "type_vocab_size": 1,
        "vocab_size": 250002,
    },
    "EuroBert": {
        **_SIZES,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "T5": _T5_BASE,
    "T5Encoder": _T5_BASE,
    "MT5": _MT5,
    "MT5Encoder": _MT5,
    "Llama": {**_DECODER, "intermediate_size": 11008, "max_position_embeddings": 2048, "vocab_size": 32000},
    "Mistral": {
        **_DECODER,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "vocab_size": 32000,
    },
    "Qwen2": _QWEN,
    "Qwen3": {**_QWEN, "head_dim": 128},
    "Qwen3Bidirectional": {"head_dim": 128, "sliding_window": 4096},
    "Gemma": {
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "max_position_embeddings": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "vocab_size": 256000,
    },
    "Gemma2": {
        **_GEMMA,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 8192,
        "rope_theta": 10_000.0,
        "vocab_size": 256000,
    },
    "Gemma3": {
        **_GEMMA,
        "max_position_embeddings": 131072,
        "rope_local_base_freq": 10_000.0,
        "rope_theta": 1_000_000.0,
        "vocab_size": 262208,
    },
}
