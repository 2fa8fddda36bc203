"""The golden sequence classifiers: between them every head, kind of label and storage that a reader has to know."""

from __future__ import annotations

from typing import Any

from scripts.golden.spec import CaseSpec, Layout, Storage, TokenizerSpec, Vocab

TOPICS = ("arts", "business", "code", "food", "games", "health", "law", "music", "news", "science", "sports", "travel")


def named(*labels: str, order: tuple[int, ...] = ()) -> dict[str, Any]:
    """id2label with these names by id, written in `order`, and the label2id that belongs to it."""
    ids = order or range(len(labels))
    return {
        "id2label": {str(position): labels[position] for position in ids},
        "label2id": {labels[position]: position for position in ids},
    }


BERT = (
    CaseSpec(
        name="bert-rerank-pad7",
        covers="1 label, pad id 7, limits baked into tokenizer.json, classifier_dropout, 3 heads, config.json's length",
        architecture="BertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 277, pad_id=7, baked_limits=True),
        config={
            "hidden_size": 36,
            "num_attention_heads": 3,
            "intermediate_size": 44,
            "classifier_dropout": 0.3,
            "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        }
        | named("LABEL_0"),
    ),
    CaseSpec(
        name="bert-entailment-gamma-beta-f16",
        covers="3 labels in another order than their ids, label2id that disagrees, gamma/beta, position_ids, f16",
        architecture="BertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 400, lowercase=False, model_max_length=51),
        config={"hidden_act": "silu", "problem_type": "single_label_classification"}
        | named("LABEL_1", "not / sure", "entailment ✓", order=(2, 0, 1))
        | {"label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}},
        storage=Storage(dtype="float16", gamma_beta=True, position_ids=True),
    ),
    CaseSpec(
        name="bert-topics-bf16-sharded",
        covers="12 labels written in the order of text ('10' before '2'), multi-label, bf16 in two shards, gelu_new",
        architecture="BertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 389, model_max_length=50),
        config={"hidden_size": 40, "num_attention_heads": 5, "hidden_act": "gelu_new", "vocab_size": 400}
        | {"problem_type": "multi_label_classification"}
        | named(*TOPICS, order=(0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)),
        storage=Storage(dtype="bfloat16", shards=2),
    ),
    CaseSpec(
        name="bert-cross-encoder-modern",
        covers="1 label, files as CrossEncoder 6.2 writes them: a modules.json of nothing but Transformer; relu",
        architecture="BertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 300, model_max_length=53),
        config={"hidden_act": "relu", "classifier_dropout": None} | named("relevance"),
        layout=Layout.MODERN,
    ),
    CaseSpec(
        name="bert-unnamed-two",
        covers="neither id2label nor num_labels: two labels, LABEL_0 and LABEL_1; layer_norm_eps 1e-2, one layer",
        architecture="BertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 320, model_max_length=64),
        config={"num_hidden_layers": 1, "layer_norm_eps": 1e-2},
    ),
)

ROBERTA = (
    CaseSpec(
        name="roberta-rerank-pooler",
        covers="1 label, a pooler that the head does not use, position_ids, classifier_dropout null, 88 tokens",
        architecture="RobertaForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 300, model_max_length=88),
        config={"classifier_dropout": None, "max_position_embeddings": 90} | named("LABEL_0"),
        storage=Storage(pooler=True, position_ids=True),
    ),
    CaseSpec(
        name="roberta-emotions-pad5-f16",
        covers="5 labels, multi-label, pad id 5 (positions from 6), two token types of which pairs use one, f16",
        architecture="RobertaForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 331, pad_id=5),
        config={"type_vocab_size": 2, "max_position_embeddings": 61, "classifier_dropout": 0.1}
        | {"problem_type": "multi_label_classification"}
        | named("joy", "Anger", "no emotion", "悲しみ", "😀"),
        storage=Storage(dtype="float16"),
    ),
    CaseSpec(
        name="roberta-unnamed-four-bf16",
        covers="num_labels 4 without id2label, a space before the first word, gelu_pytorch_tanh, bf16",
        architecture="RobertaForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 320, add_prefix_space=True, model_max_length=62),
        config={"hidden_size": 40, "num_attention_heads": 5, "hidden_act": "gelu_pytorch_tanh", "num_labels": 4},
        storage=Storage(dtype="bfloat16"),
    ),
)

XLM_ROBERTA = (
    CaseSpec(
        name="xlmr-rerank-f16",
        covers="1 label, NFKC normaliser under the generic tokenizer class, f16, a pooler that the head does not use",
        architecture="XLMRobertaForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 400, nfkc=True, model_max_length=47),
        config={"num_labels": 1, "max_position_embeddings": 66} | named("LABEL_0"),
        storage=Storage(dtype="float16", pooler=True),
    ),
    CaseSpec(
        name="xlmr-regression-pad4",
        covers="1 label with problem_type regression, pad id 4 (positions from 5, so 59 tokens, not 60), 6 heads, silu",
        architecture="XLMRobertaForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 280, pad_id=4, model_max_length=60),
        config={"hidden_size": 36, "num_attention_heads": 6, "hidden_act": "silu", "problem_type": "regression"}
        | named("stars (1 to 5)"),
    ),
    CaseSpec(
        name="xlmr-sentiment-bf16",
        covers="3 labels, problem_type null, names with spaces and case, one token type, bf16, one layer",
        architecture="XLMRobertaForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 320, model_max_length=62),
        config={"num_hidden_layers": 1, "intermediate_size": 64, "problem_type": None}
        | named("very Negative", "neutral", "POSITIVE", order=(1, 2, 0)),
        storage=Storage(dtype="bfloat16"),
    ),
)

DISTILBERT = (
    CaseSpec(
        name="distilbert-sentiment",
        covers="2 labels, seq_classif_dropout and other keys without effect, gelu_new, pair type ids without a table",
        architecture="DistilBertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 300, model_max_length=64),
        config={"activation": "gelu_new", "seq_classif_dropout": 0.2, "qa_dropout": 0.1, "dropout": 0.1}
        | {"attention_dropout": 0.1, "finetuning_task": "sst-2", "tie_weights_": True, "_num_labels": 7}
        | named("NEGATIVE", "POSITIVE"),
    ),
    CaseSpec(
        name="distilbert-unnamed-five-bf16",
        covers="num_labels 5 without id2label, multi-label, pad id 3, relu, 3 heads of 12, bf16",
        architecture="DistilBertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 317, pad_id=3, model_max_length=57),
        config={"dim": 36, "n_heads": 3, "activation": "relu", "num_labels": 5}
        | {"problem_type": "multi_label_classification"},
        storage=Storage(dtype="bfloat16"),
    ),
    CaseSpec(
        name="distilbert-rerank-f16",
        covers="1 label, cased vocabulary, position_ids, seq_classif_dropout 0, silu, f16, model_max_length 512",
        architecture="DistilBertForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 400, lowercase=False, model_max_length=512),
        config={"activation": "silu", "seq_classif_dropout": 0} | named("LABEL_0"),
        storage=Storage(dtype="float16", position_ids=True),
    ),
)

MPNET = (
    CaseSpec(
        name="mpnet-rerank-pooler",
        covers="1 label, a pooler that the head does not use, 97 tokens (further relative-position buckets), silu",
        architecture="MPNetForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.MPNET, 280, model_max_length=97),
        config={"hidden_act": "silu", "max_position_embeddings": 99} | named("LABEL_0"),
        storage=Storage(pooler=True),
    ),
    CaseSpec(
        name="mpnet-topics-pad5-f16",
        covers="3 labels in another order than their ids, pad id 5 with positions from 2 all the same, f16, gelu_new",
        architecture="MPNetForSequenceClassification",
        tokenizer=TokenizerSpec(Vocab.MPNET, 397, lowercase=False, pad_id=5, model_max_length=56),
        config={"hidden_act": "gelu_new", "layer_norm_eps": 1e-5} | named("b", "c", "a", order=(2, 1, 0)),
        storage=Storage(dtype="float16"),
    ),
)

CLASSIFIERS = (*BERT, *ROBERTA, *XLM_ROBERTA, *DISTILBERT, *MPNET)
