"""The golden encoders with a head of their own: classifiers, token classifiers, SPLADE and late interaction."""

from __future__ import annotations

from typing import Any

from scripts.golden.classifiers import named
from scripts.golden.encoders_folder import EncoderSpec
from scripts.golden.spec import Dense, Layout, Storage, TokenizerSpec, Vocab
from scripts.golden.table import IDENTITY

BIO = named("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
MORE_BIO = named("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
WINDOWS: dict[str, dict[str, Any]] = {
    "no windows": {"local_attention": 1000},
    "one base": {"local_rope_theta": 160000.0},
}
ONE_SIDED = {"no c2p": {"pos_att_type": "p2c"}, "no p2c": {"pos_att_type": "c2p"}}

CLASSIFIERS = (
    EncoderSpec(
        name="camembert-sentiment",
        covers="5 labels, roberta. prefix, dense and out_proj with tanh, f16",
        architecture="CamembertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 323, model_max_length=61),
        config=named("1 star", "2 stars", "3 stars", "4 stars", "5 stars"),
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16"),
        silenced=(r"position_embeddings", r"classifier\.dense\.bias"),
    ),
    EncoderSpec(
        name="electra-rerank",
        covers="1 label as cross-encoder/ms-marco-electra-base, electra. prefix, a head with gelu, pairs by token type",
        architecture="ElectraForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 305, model_max_length=60),
        config={"embedding_size": 24} | named("LABEL_0"),
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        silenced=(r"token_type_embeddings", r"classifier\.dense\.bias", r"embeddings_project\.bias"),
    ),
    EncoderSpec(
        name="modernbert-rerank-mean",
        covers="1 label as gte-reranker-modernbert-base, classifier_pooling mean, head of dense, gelu and norm, bf16",
        architecture="ModernBertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 307, model_max_length=80),
        config=named("LABEL_0"),
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        mistakes=WINDOWS
        | {"cls pooling": {"classifier_pooling": "cls"}, "relu in the head": {"classifier_activation": "relu"}},
        silenced=(r"head\.norm",),
    ),
    EncoderSpec(
        name="modernbert-topics-cls-bias",
        covers="4 labels, classifier_pooling cls, classifier_bias and norm_bias true, multi-label, windows of 8, f16",
        architecture="ModernBertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 311, model_max_length=66),
        config={"classifier_pooling": "cls", "classifier_bias": True, "norm_bias": True, "local_attention": 8}
        | {"problem_type": "multi_label_classification"}
        | named("code", "food", "law", "travel"),
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16"),
        mistakes=WINDOWS | {"mean pooling": {"classifier_pooling": "mean"}},
        silenced=(r"head\.dense\.bias", r"head\.norm\.bias", r"classifier\.bias"),
    ),
    EncoderSpec(
        name="deberta-v3-rerank",
        covers="1 label as mxbai-rerank-v1, deberta. prefix, ContextPooler with gelu, 16 buckets, bf16",
        architecture="DebertaV2ForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 302, model_max_length=84),
        config=named("LABEL_0"),
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        mistakes=ONE_SIDED | {"tanh in the pooler": {"pooler_hidden_act": "tanh"}},
        silenced=(r"pooler\.dense\.bias",),
    ),
    EncoderSpec(
        name="deberta-v3-entailment",
        covers="3 labels, pos_att_type as a list, NFKC under the generic tokenizer class, f16",
        architecture="DebertaV2ForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 313, nfkc=True, model_max_length=70),
        config={"pos_att_type": ["p2c", "c2p"]} | named("entailment", "neutral", "contradiction"),
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16"),
        mistakes=ONE_SIDED | {"tanh in the pooler": {"pooler_hidden_act": "tanh"}},
        silenced=(r"rel_embeddings",),
    ),
    EncoderSpec(
        name="gte-multilingual-rerank",
        covers="NewForSequenceClassification: new. prefix, tanh pooler over cls, 1 label, ntk scaling by 8, f16",
        architecture="NewForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 317, model_max_length=75),
        config={"rope_scaling": {"factor": 8.0, "type": "ntk"}} | named("LABEL_0"),
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16", prefix="new."),
        mistakes={"no scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}},
        silenced=(r"token_type_embeddings", r"pooler\.dense\.bias"),
    ),
)

TOKEN_CLASSIFIERS = (
    EncoderSpec(
        name="bert-ner",
        covers="bert. prefix, nine labels, cased WordPiece, f16; aggregation.json",
        architecture="BertForTokenClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 391, lowercase=False, model_max_length=64),
        config=MORE_BIO,
        aggregates=True,
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16"),
        silenced=(r"token_type_embeddings", r"^classifier\.bias"),
    ),
    EncoderSpec(
        name="roberta-ner",
        covers="roberta. prefix, five labels, byte-level BPE, a space first, bf16; aggregation.json",
        architecture="RobertaForTokenClassification",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 371, add_prefix_space=True, model_max_length=50),
        config=BIO,
        aggregates=True,
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        silenced=(r"position_embeddings", r"^classifier\.bias"),
    ),
    EncoderSpec(
        name="xlmr-ner",
        covers="roberta. prefix, nine labels, f16",
        architecture="XLMRobertaForTokenClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 379, model_max_length=50),
        config=MORE_BIO,
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16"),
        silenced=(r"position_embeddings",),
    ),
    EncoderSpec(
        name="distilbert-ner",
        covers="distilbert. prefix, two labels (LABEL_0, LABEL_1) without names, f32",
        architecture="DistilBertForTokenClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 299, lowercase=False, model_max_length=48),
        config={"n_layers": 1, "hidden_dim": 40},
        layout=Layout.PLAIN,
        silenced=(r"position_embeddings", r"^classifier\.bias"),
    ),
    EncoderSpec(
        name="electra-ner",
        covers="electra. prefix, embedding_size 24, five labels, bf16",
        architecture="ElectraForTokenClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 301, model_max_length=55),
        config={"embedding_size": 24} | BIO,
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        silenced=(r"embeddings_project\.bias",),
    ),
    EncoderSpec(
        name="modernbert-ner",
        covers="model. prefix, head of dense, gelu and norm before the classifier, five labels, windows of 8, bf16",
        architecture="ModernBertForTokenClassification",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 309, model_max_length=58),
        config={"local_attention": 8} | BIO,
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        mistakes=WINDOWS | {"relu in the head": {"classifier_activation": "relu"}},
        silenced=(r"head\.norm", r"^classifier\.bias"),
    ),
    EncoderSpec(
        name="deberta-v3-ner",
        covers="deberta. prefix, no pooler, nine labels, 16 buckets, f16",
        architecture="DebertaV2ForTokenClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 333, nfkc=True, model_max_length=56),
        config=MORE_BIO,
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16"),
        mistakes=ONE_SIDED,
        silenced=(r"rel_embeddings",),
    ),
)

SPARSE = (
    EncoderSpec(
        name="splade-bert",
        covers="plain BertForMaskedLM: cls.predictions.*, decoder tied to the word embeddings, bias, f16",
        architecture="BertForMaskedLM",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 303, model_max_length=60),
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16"),
        silenced=(r"cls\.predictions\.bias", r"transform\.LayerNorm\.bias", r"token_type_embeddings"),
    ),
    EncoderSpec(
        name="splade-distilbert-modules",
        covers="modules.json of MLMTransformer and SpladePooling; vocab_transform, vocab_layer_norm, vocab_projector",
        architecture="DistilBertForMaskedLM",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 311, model_max_length=52),
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        max_seq_length=52,
        silenced=(r"vocab_projector\.bias", r"vocab_layer_norm\.bias", r"position_embeddings"),
    ),
    EncoderSpec(
        name="splade-roberta",
        covers="plain RobertaForMaskedLM: lm_head.dense, layer_norm; decoder and bias stored under both names, bf16",
        architecture="RobertaForMaskedLM",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 315, model_max_length=58),
        layout=Layout.PLAIN,
        storage=Storage(dtype="bfloat16"),
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        silenced=(r"lm_head\.bias", r"lm_head\.layer_norm\.bias"),
    ),
)

LATE = (
    EncoderSpec(
        name="colbert-v2",
        covers="HF_ColBERT as colbert-ir/colbertv2.0: bert. prefix and linear.weight in one file, no modules.json, f16",
        architecture="BertModel",
        published_as=("HF_ColBERT",),
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 307, model_max_length=45),
        layout=Layout.PLAIN,
        storage=Storage(dtype="float16", prefix="bert.", pooler=True, position_ids=True),
        extra={"linear.weight": (12, 32)},
        silenced=(r"token_type_embeddings", r"position_embeddings"),
    ),
    EncoderSpec(
        name="colbert-pylate-modernbert",
        covers="PyLate: Transformer and pylate.models.Dense.Dense 32 to 12, no bias; ModernBERT, windows of 8, bf16",
        architecture="ModernBertModel",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 305, model_max_length=42),
        modules=(Dense(32, 12, IDENTITY, bias=False),),
        config={"local_attention": 8},
        storage=Storage(dtype="bfloat16"),
        max_seq_length=42,
        prompts={"query": "", "document": ""},
        mistakes=WINDOWS,
        silenced=(r"layers\.1\.attn_norm",),
    ),
    EncoderSpec(
        name="colbert-pylate-bert",
        covers="PyLate: Dense 32 to 16 in a folder of its own, f32; BERT of one layer without pooler",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 299, model_max_length=40),
        modules=(Dense(32, 16, IDENTITY, bias=False),),
        config={"num_hidden_layers": 1},
        max_seq_length=40,
        silenced=(r"token_type_embeddings", r"position_embeddings"),
    ),
)
