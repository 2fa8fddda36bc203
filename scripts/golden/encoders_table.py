"""The golden encoders of later families: what each of them does in another way than BERT."""

from __future__ import annotations

from typing import Any

from scripts.golden.encoders_folder import EncoderSpec
from scripts.golden.spec import Layout, Normalize, Storage, TokenizerSpec, Vocab
from scripts.golden.table import BOOLEANS, booleans, modules, named

WINDOWS: dict[str, dict[str, Any]] = {
    "no windows": {"local_attention": 1000},
    "every layer local": {"global_attn_every_n_layers": 100},
    "every layer global": {"global_attn_every_n_layers": 1},
    "a window one token wider": {"local_attention": 18},
    "one base": {"local_rope_theta": 160000.0},
    "bases swapped": {"local_rope_theta": 160000.0, "global_rope_theta": 10000.0},
    "layer_norm_eps 1e-2 instead of norm_eps": {"norm_eps": 1e-2},
}
C2P, P2C = ({"pos_att_type": kind} for kind in ("c2p", "p2c"))
RELATIVE: dict[str, dict[str, Any]] = {
    "no p2c": C2P,
    "no c2p": P2C,
    "no relative attention": {"relative_attention": False, "norm_rel_ebd": "none"},
    "no norm of the relative embeddings": {"norm_rel_ebd": "none"},
}
CAMEMBERT = (
    EncoderSpec(
        name="camembert-plain-prefix-f16",
        covers="CamembertForMaskedLM with roberta. prefix, f16, no modules.json (mean), position_ids",
        architecture="CamembertModel",
        layout=Layout.PLAIN,
        published_as=("CamembertForMaskedLM",),
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 331, model_max_length=60),
        storage=Storage(dtype="float16", prefix="roberta."),
        extra={
            "lm_head.bias": (331,),
            "lm_head.dense.weight": (32, 32),
            "lm_head.dense.bias": (32,),
            "lm_head.layer_norm.weight": (32,),
            "lm_head.layer_norm.bias": (32,),
        },
        mistakes={"relu": {"hidden_act": "relu"}},
        silenced=(r"position_embeddings", r"token_type_embeddings"),
    ),
    EncoderSpec(
        name="camembert-cls",
        covers="cls pooling and Normalize, pad id 0 (positions from 1), layer_norm_eps 1e-5",
        architecture="CamembertModel",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 300, pad_id=0, model_max_length=55),
        modules=modules(booleans(32, "cls_token"), Normalize()),
        config={"max_position_embeddings": 56},
        storage=Storage(dtype="bfloat16"),
        max_seq_length=55,
        silenced=(r"position_embeddings", r"token_type_embeddings"),
    ),
)
ELECTRA = (
    EncoderSpec(
        name="electra-plain-projected-f16",
        covers="embedding_size 24 and hidden_size 32 (embeddings_project), no modules.json (mean), f16",
        architecture="ElectraModel",
        layout=Layout.PLAIN,
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 307, model_max_length=58),
        config={"embedding_size": 24},
        storage=Storage(dtype="float16"),
        silenced=(r"position_embeddings", r"token_type_embeddings", r"embeddings_project\.bias"),
    ),
    EncoderSpec(
        name="electra-prefix-mean",
        covers="ElectraForPreTraining with electra. prefix and the discriminator's head, mean and Normalize",
        architecture="ElectraModel",
        published_as=("ElectraForPreTraining",),
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 299, model_max_length=64),
        modules=modules(named(32, "mean"), Normalize()),
        storage=Storage(dtype="bfloat16", prefix="electra."),
        layout=Layout.MODERN,
        extra={
            "discriminator_predictions.dense.weight": (32, 32),
            "discriminator_predictions.dense.bias": (32,),
            "discriminator_predictions.dense_prediction.weight": (1, 32),
            "discriminator_predictions.dense_prediction.bias": (1,),
        },
        silenced=(r"position_embeddings", r"token_type_embeddings"),
    ),
)
MODERN_BERT = (
    EncoderSpec(
        name="modernbert-plain-masked-lm",
        covers="ModernBertForMaskedLM with model. prefix and head, no modules.json (mean), windows of 16, bf16",
        architecture="ModernBertModel",
        layout=Layout.PLAIN,
        published_as=("ModernBertForMaskedLM",),
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 311, model_max_length=90),
        storage=Storage(dtype="bfloat16", prefix="model."),
        extra={"head.dense.weight": (32, 32), "head.norm.weight": (32,), "decoder.bias": (311,)},
        mistakes=WINDOWS | {"relu": {"hidden_activation": "relu"}},
        silenced=(r"layers\.1\.attn_norm",),
    ),
    EncoderSpec(
        name="modernbert-cls-biases-f16",
        covers="biases of attention, MLP and norms, windows of 8 in five of seven layers (every 3rd global), cls, f16",
        architecture="ModernBertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 298, model_max_length=72),
        modules=modules(booleans(24, "cls_token"), Normalize()),
        config={"attention_bias": True, "mlp_bias": True, "norm_bias": True, "local_attention": 8}
        | {"num_hidden_layers": 7, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 24},
        storage=Storage(dtype="float16"),
        max_seq_length=72,
        mistakes=WINDOWS | {"a window one token wider": {"local_attention": 10}},
        silenced=(r"Wqkv\.bias", r"Wo\.bias", r"Wi\.bias", r"norm\.bias"),
    ),
    EncoderSpec(
        name="modernbert-mean-parameters",
        covers="rope_parameters and layer_types as transformers 5 writes them, alternate layers global, silu, bf16",
        architecture="ModernBertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 313, model_max_length=80),
        modules=modules(named(32, "mean"), Normalize()),
        layout=Layout.MODERN,
        config={
            "global_attn_every_n_layers": 2,
            "hidden_activation": "silu",
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "local_attention": 12,
            "rope_parameters": {
                "full_attention": {"rope_theta": 80000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1000.0, "rope_type": "default"},
            },
        },
        storage=Storage(dtype="bfloat16"),
        mistakes={
            "no windows": {"local_attention": 1000},
            "every 3rd layer global": {"layer_types": None, "global_attn_every_n_layers": 3},
            "the usual bases": {"rope_parameters": None},
        },
    ),
)
TWICE = {"rope_type": "default", "rope_theta": 10000.0}
NOMIC_BERT = (
    EncoderSpec(
        name="nomic-mean-bf16",
        covers="NomicBertModel as published (no prefix), rotary_emb_base 1000, swiglu, mean, a search_document prompt",
        architecture="NomicBertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 303, model_max_length=8192),
        modules=modules(booleans(32, "mean_tokens"), Normalize()),
        storage=Storage(dtype="bfloat16"),
        max_seq_length=80,
        prompts={"document": "search_document: ", "query": "search_query: "},
        default_prompt_name="document",
        mistakes={"base 10000": {"rope_parameters": TWICE}, "gelu": {"hidden_act": "gelu"}},
        silenced=(r"token_type_embeddings",),
    ),
    EncoderSpec(
        name="nomic-plain-prefix",
        covers="NomicBertForPreTraining with bert. prefix and head, no modules.json (mean), base 10000, no token types",
        architecture="NomicBertModel",
        layout=Layout.PLAIN,
        published_as=("NomicBertForPreTraining",),
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 321, model_max_length=70),
        config={"rotary_emb_base": 10000, "type_vocab_size": 1, "n_positions": 96, "max_trained_positions": 96},
        storage=Storage(dtype="float16", prefix="bert."),
        extra={
            "cls.predictions.transform.dense.weight": (32, 32),
            "cls.predictions.transform.dense.bias": (32,),
            "cls.predictions.transform.layer_norm.weight": (32,),
            "cls.predictions.transform.layer_norm.bias": (32,),
            "cls.predictions.decoder.bias": (321,),
        },
        mistakes={"base 1000": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}},
        silenced=(r"token_type_embeddings",),
    ),
)
MULTILINGUAL = {"rope_type": "default", "rope_theta": 20000.0}
NEW = (
    EncoderSpec(
        name="gte-multilingual-ntk-f16",
        covers="NewModel with new. prefix, its pooler and token classifier, ntk scaling by 8, one token type, cls, f16",
        architecture="NewModel",
        published_as=("NewModel", "NewForTokenClassification"),
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 317, model_max_length=32768),
        modules=modules(named(32, "cls"), Normalize()),
        config={"rope_scaling": {"factor": 8.0, "type": "ntk"}, "id2label": {"0": "LABEL_0"}}
        | {"label2id": {"LABEL_0": 0}},
        storage=Storage(dtype="float16", prefix="new."),
        max_seq_length=85,
        extra={"classifier.weight": (1, 32), "classifier.bias": (1,)},
        mistakes={
            "no scaling": {"rope_parameters": MULTILINGUAL},
            "only the base grows": {"rope_parameters": MULTILINGUAL | {"rope_theta": 160000.0}},
            "linear scaling": {"rope_parameters": MULTILINGUAL | {"rope_type": "linear", "factor": 8.0}},
            "relu": {"hidden_act": "relu"},
        },
        silenced=(r"token_type_embeddings", r"down_proj\.bias", r"v_proj\.bias", r"q_proj\.bias"),
    ),
    EncoderSpec(
        name="gte-en-plain",
        covers="NewModel without prefix, no token types, rope_theta 500000 without scaling, no modules.json (mean)",
        architecture="NewModel",
        layout=Layout.PLAIN,
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 309, model_max_length=75),
        config={"rope_theta": 500000, "type_vocab_size": 0, "unpad_inputs": True}
        | {"use_memory_efficient_attention": True, "pad_token_id": 0},
        storage=Storage(dtype="bfloat16"),
        mistakes={"base 160000": {"rope_parameters": MULTILINGUAL | {"rope_theta": 160000.0}}},
        silenced=(r"o_proj\.bias",),
    ),
)
DEBERTA = (
    EncoderSpec(
        name="deberta-v3-plain-prefix",
        covers="DebertaV2ForMaskedLM with deberta. prefix, share_att_key, p2c|c2p as a string, 16 buckets, f16, mean",
        architecture="DebertaV2Model",
        layout=Layout.PLAIN,
        published_as=("DebertaV2ForMaskedLM",),
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 319, nfkc=True, model_max_length=88),
        storage=Storage(dtype="float16", prefix="deberta."),
        extra={
            "lm_predictions.lm_head.bias": (319,),
            "lm_predictions.lm_head.dense.weight": (32, 32),
            "lm_predictions.lm_head.dense.bias": (32,),
            "lm_predictions.lm_head.LayerNorm.weight": (32,),
            "lm_predictions.lm_head.LayerNorm.bias": (32,),
        },
        mistakes=RELATIVE | {"no buckets": {"position_buckets": -1, "max_relative_positions": 16}},
        silenced=(r"rel_embeddings",),
    ),
    EncoderSpec(
        name="deberta-v3-list-cls",
        covers="no prefix, pos_att_type as a list in the other order, 3 heads, cls and Normalize, tied keys, bf16",
        architecture="DebertaV2Model",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 301, model_max_length=77),
        modules=modules(booleans(36, "cls_token", keys=BOOLEANS), Normalize()),
        config={"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 44, "pooler_hidden_size": 36}
        | {"pos_att_type": ["c2p", "p2c"], "position_buckets": 12},
        storage=Storage(dtype="bfloat16"),
        max_seq_length=77,
        mistakes=RELATIVE,
        silenced=(r"rel_embeddings",),
    ),
    EncoderSpec(
        name="deberta-v2-conv-biased",
        covers="v2: absolute positions too, relative keys of their own, ConvLayer of 3 with gelu, one token type, mean",
        architecture="DebertaV2Model",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 315, model_max_length=80),
        modules=modules(named(32, "mean"), Normalize()),
        config={"position_biased_input": True, "share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu"}
        | {"attention_head_size": 8, "type_vocab_size": 1, "pos_att_type": ["p2c", "c2p"]},
        storage=Storage(dtype="float16"),
        layout=Layout.MODERN,
        mistakes=RELATIVE | {"conv with tanh": {"conv_act": "tanh"}},
        silenced=(r"rel_embeddings", r"conv\.conv", r"embeddings\.position_embeddings", r"pos_query_proj\.bias"),
    ),
)
EMBEDDERS = CAMEMBERT + ELECTRA + MODERN_BERT + NOMIC_BERT + NEW + DEBERTA
