"""The golden checkpoints: between them every architecture, pooling, layout and storage that a reader has to know."""

from __future__ import annotations

from typing import Any

from scripts.golden.spec import CaseSpec, Dense, Layout, Module, Normalize, Pooling, Storage, TokenizerSpec, Vocab

TANH = "torch.nn.modules.activation.Tanh"
GELU = "torch.nn.modules.activation.GELU"
SILU = "torch.nn.modules.activation.SiLU"
IDENTITY = "torch.nn.modules.linear.Identity"

FIRST_BOOLEANS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
BOOLEANS = (*FIRST_BOOLEANS, "weightedmean_tokens", "lasttoken")


def booleans(width: int, *active: str, keys: tuple[str, ...] = BOOLEANS) -> Pooling:
    """The form of sentence-transformers before 5.4; its first four keys are all that 2.2 and older wrote."""
    config: dict[str, Any] = {"word_embedding_dimension": width}
    config |= {f"pooling_mode_{key}": key in active for key in keys}
    return Pooling(config | ({"include_prompt": True} if keys is BOOLEANS else {}))


def named(width: int, mode: str | list[str], *, include_prompt: bool = True) -> Pooling:
    """The form of sentence-transformers 5.4 and later; a list concatenates in its own order."""
    return Pooling({"embedding_dimension": width, "pooling_mode": mode, "include_prompt": include_prompt})


def modules(*items: Module) -> tuple[Module, ...]:
    """`items`: only a shorter way to spell a tuple of mixed modules."""
    return items


BERT = (
    CaseSpec(
        name="bert-cls-normalize",
        covers="four-boolean cls pooling, Normalize, pooler, position_ids buffer, limits baked into tokenizer.json",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 320, baked_limits=True, model_max_length=64),
        modules=modules(booleans(32, "cls_token", keys=FIRST_BOOLEANS), Normalize()),
        storage=Storage(pooler=True, position_ids=True),
        max_seq_length=48,
        prompts={"query": "Represent this sentence for searching relevant passages: "},
    ),
    CaseSpec(
        name="bert-plain-masked-lm",
        covers="no modules.json (mean), BertForMaskedLM with bert. prefix, head, gamma/beta, tokenizer_config's length",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 320, model_max_length=56),
        storage=Storage(prefix="bert.", head=True, gamma_beta=True),
        layout=Layout.PLAIN,
    ),
    CaseSpec(
        name="bert-max-gamma-beta-f16",
        covers="max pooling, not normalised, LayerNorm gamma/beta, f16, silu",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 400, lowercase=False),
        modules=modules(booleans(32, "max_tokens")),
        config={"hidden_act": "silu"},
        storage=Storage(dtype="float16", prefix="bert.", gamma_beta=True, pooler=True),
        max_seq_length=40,
    ),
    CaseSpec(
        name="bert-last-dense-tanh",
        covers="last token, Dense 36 to 24 with bias and tanh, Normalize, 3 heads of 12, pad id 7, vocabulary of 311",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 311, pad_id=7),
        modules=modules(booleans(36, "lasttoken"), Dense(36, 24, TANH), Normalize()),
        config={"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 44},
        max_seq_length=64,
    ),
    CaseSpec(
        name="bert-mean-max-bf16-sharded",
        covers="max and mean concatenated by booleans (in that order), bf16 in two shards, gelu_new, padded vocabulary",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 389),
        modules=modules(booleans(40, "max_tokens", "mean_tokens"), Normalize()),
        config={"hidden_size": 40, "num_attention_heads": 5, "hidden_act": "gelu_new", "vocab_size": 400},
        storage=Storage(dtype="bfloat16", shards=2),
        max_seq_length=50,
    ),
    CaseSpec(
        name="bert-mean-cls-list",
        covers="pooling list [mean, cls], do_lower_case over a cased tokenizer, one token type, eps 1e-2, relu",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 320, lowercase=False),
        modules=modules(named(32, ["mean", "cls"])),
        config={"type_vocab_size": 1, "layer_norm_eps": 1e-2, "hidden_act": "relu"},
        max_seq_length=60,
        do_lower_case=True,
    ),
    CaseSpec(
        name="bert-prompt-excluded",
        covers="a default prompt whose tokens are left out of the mean (include_prompt false)",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 320, model_max_length=64),
        modules=modules(named(32, "mean", include_prompt=False), Normalize()),
        layout=Layout.MODERN,
        prompts={"query": "Find the answer: ", "document": ""},
        default_prompt_name="query",
    ),
    CaseSpec(
        name="bert-modern-dense-gelu",
        covers="files as 6.2 writes them, length only in tokenizer_config.json, Dense gelu without bias, three layers",
        architecture="BertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 300, model_max_length=52),
        modules=modules(named(32, "mean"), Dense(32, 20, GELU, bias=False), Normalize()),
        config={"num_hidden_layers": 3, "intermediate_size": 32},
        layout=Layout.MODERN,
        storage=Storage(pooler=True),
    ),
)

ROBERTA = (
    CaseSpec(
        name="roberta-mean-normalize",
        covers="mean pooling, Normalize, positions from 2, one token type",
        architecture="RobertaModel",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 320, model_max_length=62),
        modules=modules(booleans(32, "mean_tokens", keys=FIRST_BOOLEANS), Normalize()),
        max_seq_length=50,
    ),
    CaseSpec(
        name="roberta-cls-masked-lm-f16",
        covers="cls pooling by name, RobertaForMaskedLM with roberta. prefix and lm_head, position_ids buffer, f16",
        architecture="RobertaModel",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 400, model_max_length=62),
        modules=modules(named(40, "cls")),
        config={"hidden_size": 40, "num_attention_heads": 5, "hidden_act": "gelu_pytorch_tanh"},
        storage=Storage(dtype="float16", prefix="roberta.", head=True, position_ids=True),
        layout=Layout.MODERN,
    ),
    CaseSpec(
        name="roberta-weightedmean-pad5",
        covers="weighted mean, pad id 5 (positions from 6), two token types, relu",
        architecture="RobertaModel",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 331, pad_id=5),
        modules=modules(booleans(32, "weightedmean_tokens"), Normalize()),
        config={"type_vocab_size": 2, "hidden_act": "relu", "max_position_embeddings": 70},
        storage=Storage(pooler=True),
        max_seq_length=64,
    ),
    CaseSpec(
        name="roberta-sqrt-dense-identity",
        covers="mean-sqrt-len, Dense with bias and no activation, a space before the first word",
        architecture="RobertaModel",
        tokenizer=TokenizerSpec(Vocab.BYTE_BPE, 320, add_prefix_space=True, model_max_length=62),
        modules=modules(booleans(32, "mean_sqrt_len_tokens"), Dense(32, 32, IDENTITY)),
        config={"layer_norm_eps": 1e-5},
        max_seq_length=62,
    ),
)

XLM_ROBERTA = (
    CaseSpec(
        name="xlmr-prompt-mean-normalize",
        covers="a default prompt that counts in the mean (as e5 has), Normalize",
        architecture="XLMRobertaModel",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 320, model_max_length=62),
        modules=modules(named(32, "mean"), Normalize()),
        layout=Layout.MODERN,
        prompts={"query": "query: ", "document": "passage: "},
        default_prompt_name="query",
    ),
    CaseSpec(
        name="xlmr-cls-f16-sharded",
        covers="cls pooling, Normalize, f16 in two shards with roberta. prefix and lm_head, NFKC normaliser",
        architecture="XLMRobertaModel",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 400, nfkc=True, model_max_length=62),
        modules=modules(booleans(32, "cls_token", keys=FIRST_BOOLEANS), Normalize()),
        storage=Storage(dtype="float16", prefix="roberta.", head=True, shards=2),
        max_seq_length=48,
    ),
    CaseSpec(
        name="xlmr-max-dense-identity-bf16",
        covers="max pooling by name, Dense 36 to 16 without bias or activation, 3 heads of 12, bf16",
        architecture="XLMRobertaModel",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 403, model_max_length=62),
        modules=modules(named(36, "max"), Dense(36, 16, IDENTITY, bias=False)),
        config={"hidden_size": 36, "num_attention_heads": 3, "vocab_size": 405},
        storage=Storage(dtype="bfloat16", pooler=True),
        layout=Layout.MODERN,
    ),
    CaseSpec(
        name="xlmr-sqrt-silu",
        covers="mean-sqrt-len by name, not normalised, silu, 6 heads of 6",
        architecture="XLMRobertaModel",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 310, model_max_length=62),
        modules=modules(named(36, "mean_sqrt_len_tokens")),
        config={"hidden_size": 36, "num_attention_heads": 6, "hidden_act": "silu"},
        layout=Layout.MODERN,
    ),
    CaseSpec(
        name="xlmr-plain-mean",
        covers="no modules.json (mean), one layer, length from tokenizer_config.json",
        architecture="XLMRobertaModel",
        tokenizer=TokenizerSpec(Vocab.UNIGRAM, 320, model_max_length=44),
        config={"num_hidden_layers": 1, "intermediate_size": 64},
        layout=Layout.PLAIN,
    ),
)

DISTILBERT = (
    CaseSpec(
        name="distilbert-mean",
        covers="mean pooling, not normalised, distilbert. prefix, gelu_new",
        architecture="DistilBertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 320, model_max_length=64),
        modules=modules(booleans(32, "mean_tokens", keys=FIRST_BOOLEANS)),
        config={"activation": "gelu_new"},
        storage=Storage(prefix="distilbert."),
        max_seq_length=64,
    ),
    CaseSpec(
        name="distilbert-mean-dense-tanh",
        covers="mean pooling by name, Dense 32 to 48 with tanh, not normalised, masked-LM head, position_ids, relu",
        architecture="DistilBertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 300, lowercase=False),
        modules=modules(named(32, "mean"), Dense(32, 48, TANH)),
        config={"activation": "relu"},
        storage=Storage(prefix="distilbert.", head=True, position_ids=True),
        max_seq_length=40,
    ),
    CaseSpec(
        name="distilbert-normalize-before-dense",
        covers="Normalize before a Dense with bias and silu and none after, 3 heads of 12, silu inside too",
        architecture="DistilBertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 317),
        modules=modules(named(36, "mean"), Normalize(), Dense(36, 24, SILU)),
        config={"dim": 36, "n_heads": 3, "activation": "silu"},
        max_seq_length=57,
    ),
    CaseSpec(
        name="distilbert-every-mode",
        covers="all six poolings concatenated by booleans, bf16",
        architecture="DistilBertModel",
        tokenizer=TokenizerSpec(Vocab.WORDPIECE, 320),
        modules=modules(booleans(32, *BOOLEANS)),
        storage=Storage(dtype="bfloat16"),
        max_seq_length=32,
    ),
)

MPNET = (
    CaseSpec(
        name="mpnet-mean-normalize",
        covers="mean pooling, Normalize, texts long enough (160) for the last relative-position buckets",
        architecture="MPNetModel",
        tokenizer=TokenizerSpec(Vocab.MPNET, 300, model_max_length=160),
        modules=modules(booleans(32, "mean_tokens", keys=FIRST_BOOLEANS), Normalize()),
        config={"max_position_embeddings": 162},
        storage=Storage(pooler=True),
        max_seq_length=160,
    ),
    CaseSpec(
        name="mpnet-cls-masked-lm-bf16",
        covers="cls pooling, MPNetForMaskedLM with mpnet. prefix and lm_head, position_ids, 3 heads of 12, bf16",
        architecture="MPNetModel",
        tokenizer=TokenizerSpec(Vocab.MPNET, 400, lowercase=False),
        modules=modules(booleans(36, "cls_token")),
        config={"hidden_size": 36, "num_attention_heads": 3},
        storage=Storage(dtype="bfloat16", prefix="mpnet.", head=True, position_ids=True),
        max_seq_length=62,
    ),
    CaseSpec(
        name="mpnet-weightedmean-dense-silu-f16",
        covers="weighted mean by name, Dense with silu and no bias, Normalize, layer_norm_eps 1e-5, gelu_new, f16",
        architecture="MPNetModel",
        tokenizer=TokenizerSpec(Vocab.MPNET, 397, model_max_length=62),
        modules=modules(named(32, "weightedmean"), Dense(32, 32, SILU, bias=False), Normalize()),
        config={"layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
        storage=Storage(dtype="float16"),
        layout=Layout.MODERN,
    ),
    CaseSpec(
        name="mpnet-last-normalize",
        covers="last token by name, Normalize, 4 heads of 8, silu",
        architecture="MPNetModel",
        tokenizer=TokenizerSpec(Vocab.MPNET, 320, model_max_length=62),
        modules=modules(named(32, "lasttoken"), Normalize()),
        config={"hidden_act": "silu"},
        layout=Layout.MODERN,
    ),
)

CASES = (*BERT, *ROBERTA, *XLM_ROBERTA, *DISTILBERT, *MPNET)
