"""The golden decoders that classify and rerank, by a head of their own or by the logits of "yes" and "no"."""

from __future__ import annotations

from scripts.golden.classifiers import named
from scripts.golden.decoders_folder import DecoderSpec
from scripts.golden.decoders_vocabulary import DecoderTokenizer
from scripts.golden.spec import Layout, Storage, Vocab

LAST_ANYHOW = {"the last token whatever the pad id": {"pad_token_id": None}}
JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
# What a CrossEncoder needs to build the same from messages whose roles are query and document. Jinja would drop a
# newline at the very end of a template.
CHAT_TEMPLATE = (
    JUDGE.removesuffix("\n\n")
    .replace("{query}", '{{ (messages | selectattr("role", "eq", "query") | first).content }}')
    .replace("{document}", '{{ (messages | selectattr("role", "eq", "document") | first).content }}')
    + '{{ "\\n\\n" }}'
)

CLASSIFIERS = (
    DecoderSpec(
        name="llama-reward",
        covers="1 label as Skywork-Reward-Llama-3.1-8B, a pad token of its own, llama3 rope_scaling, bos, f16",
        architecture="LlamaForSequenceClassification",
        tokenizer=DecoderTokenizer(Vocab.LLAMA3, 301, model_max_length=64),
        config={
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 40,
                "rope_type": "llama3",
            },
            "head_dim": 16,
            "rope_theta": 500000.0,
        }
        | named("LABEL_0"),
        storage=Storage(dtype="float16"),
        layout=Layout.PLAIN,
        mistakes={"no rope scaling": {"rope_scaling": None}},
    ),
    DecoderSpec(
        name="llama-reward-pad-is-eos",
        covers="1 label, eos after every text and the pad id is eos: the score is that of the token before it, bf16",
        architecture="LlamaForSequenceClassification",
        tokenizer=DecoderTokenizer(Vocab.LLAMA3, 305, eos=True, pad="<|end_of_text|>", model_max_length=60),
        config={"attention_bias": True} | named("LABEL_0"),
        storage=Storage(dtype="bfloat16"),
        layout=Layout.PLAIN,
        mistakes=LAST_ANYHOW,
    ),
    DecoderSpec(
        name="mistral-topics-no-pad",
        covers="3 labels, pad_token_id null with eos after every text: the score is that of eos, sliding_window 9, f16",
        architecture="MistralForSequenceClassification",
        tokenizer=DecoderTokenizer(Vocab.MISTRAL, 391, eos=True, model_max_length=62),
        config={"pad_token_id": None, "sliding_window": 9, "problem_type": "single_label_classification"}
        | named("economy", "Sports news", "other"),
        storage=Storage(dtype="float16"),
        layout=Layout.PLAIN,
        mistakes={"no sliding window": {"sliding_window": None}, "the token before": {"pad_token_id": 2}},
    ),
    DecoderSpec(
        name="qwen2-rerank-seq-cls",
        covers="1 label, pairs with nothing between query and document, biases of q, k and v, bf16",
        architecture="Qwen2ForSequenceClassification",
        tokenizer=DecoderTokenizer(Vocab.QWEN, 299, bos=False, model_max_length=64),
        config={"num_labels": 1} | named("LABEL_0"),
        storage=Storage(dtype="bfloat16"),
        layout=Layout.PLAIN,
    ),
    DecoderSpec(
        name="qwen3-rerank-seq-cls",
        covers="1 label as Qwen3-Reranker-0.6B-seq-cls, 5 heads over 1 key head, head_dim 12, CrossEncoder 6.2's files",
        architecture="Qwen3ForSequenceClassification",
        tokenizer=DecoderTokenizer(Vocab.QWEN, 307, bos=False, model_max_length=64),
        config={"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 12}
        | named("LABEL_0"),
        storage=Storage(dtype="bfloat16"),
        layout=Layout.MODERN,
    ),
    DecoderSpec(
        name="gemma2-two-labels",
        covers="2 labels, soft cap and alternating windows under a head, bos and eos, pad id 0, tanh of gelu, f16",
        architecture="Gemma2ForSequenceClassification",
        tokenizer=DecoderTokenizer(Vocab.GEMMA, 393, eos=True, model_max_length=58),
        config={"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4, "sliding_window": 8}
        | {"problem_type": "multi_label_classification"}
        | named("safe", "UNSAFE ✗"),
        storage=Storage(dtype="float16"),
        layout=Layout.PLAIN,
        mistakes={"no soft cap": {"attn_logit_softcapping": None}, "no window": {"sliding_window": 4096}},
    ),
    DecoderSpec(
        name="gemma3-topics",
        covers="4 labels, window of 7 in every other layer, two thetas, norms of q and k, bos and eos, pad id 0, bf16",
        architecture="Gemma3TextForSequenceClassification",
        tokenizer=DecoderTokenizer(Vocab.GEMMA, 385, eos=True, model_max_length=56),
        config={
            "hidden_size": 36,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 9,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_theta": 1000.0,
            "rope_local_base_freq": 10.0,
            "sliding_window": 7,
        }
        | named("code", "food", "law", "travel"),
        storage=Storage(dtype="bfloat16"),
        layout=Layout.PLAIN,
        mistakes={
            "no window": {"sliding_window": 4096},
            "one theta": {"rope_local_base_freq": 1000.0},
            "scale by head_dim": {"query_pre_attn_scalar": 16},
        },
    ),
)


def judge_tokenizer(size: int) -> DecoderTokenizer:
    """Qwen3's, with room for whole prompts."""
    return DecoderTokenizer(
        Vocab.QWEN, size, bos=False, model_max_length=1024, words=("yes", "no"), added=("<think>", "</think>")
    )


RERANKERS = (
    DecoderSpec(
        name="qwen3-yes-no-tied",
        covers="Qwen3-Reranker-0.6B: logit of yes less logit of no, embeddings in place of lm_head.weight, bf16",
        architecture="Qwen3ForCausalLM",
        tokenizer=judge_tokenizer(371),
        config={"head_dim": 16, "max_position_embeddings": 1024, "vocab_size": 376},
        storage=Storage(dtype="bfloat16"),
        layout=Layout.PLAIN,
        template=JUDGE,
    ),
    DecoderSpec(
        name="qwen3-yes-no-untied-f16",
        covers="Qwen3-Reranker with an lm_head.weight (tie_word_embeddings false), 3 heads, two shards, f16",
        architecture="Qwen3ForCausalLM",
        tokenizer=judge_tokenizer(365),
        config={"max_position_embeddings": 1024, "tie_word_embeddings": False, "hidden_size": 36}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12},
        storage=Storage(dtype="float16", shards=2),
        layout=Layout.PLAIN,
        template=JUDGE,
    ),
    DecoderSpec(
        name="qwen3-logit-score",
        covers="CrossEncoder 6.2's files: modules.json of Transformer and LogitScore, chat_template.jinja",
        architecture="Qwen3ForCausalLM",
        tokenizer=judge_tokenizer(360),
        config={"max_position_embeddings": 1024},
        storage=Storage(dtype="bfloat16"),
        layout=Layout.MODERN,
        template=JUDGE,
    ),
)
