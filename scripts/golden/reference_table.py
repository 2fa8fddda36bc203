"""The models that Baseten's page on BEI names, as published, and the sizes that make a small file of each.

`reference_published.json` has each repository's config.json and how far that is confirmed. Here stand the sizes that
replace the published ones, and what config.json does not say (tokenizer, sentence-transformers modules, how the weights
are stored), from memory of the repositories. Windows and original lengths shrink too, so that they still matter to
texts of a few hundred tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.golden.decoders_folder import DecoderSpec
from scripts.golden.decoders_vocabulary import DecoderTokenizer
from scripts.golden.spec import CaseSpec, Json, Layout, Module, Normalize, Pooling, Storage, TokenizerSpec, Vocab

PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("reference_published.json").read_text(encoding="utf-8")
)
# The only keys that a small copy may have another value of, besides the ids of tokens.
SIZES = frozenset(
    {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "sliding_window",
        "sliding_window_size",
        "original_max_position_embeddings",  # inside rope_scaling
    }
)
POOLING_FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@dataclass(frozen=True)
class Row:
    """A row of the reference's table."""

    case: CaseSpec  # its name is the repository, its config the sizes
    tokens: dict[str, str | tuple[str, ...]]  # config.json's key -> the token whose id, here, it has

    @property
    def template(self) -> str:
        """What a decoder is given for a query and a document; "" where they are a pair."""
        return self.case.template if isinstance(self.case, DecoderSpec) else ""

    @property
    def mistakes(self) -> dict[str, dict[str, Any]]:
        """Name -> what config.json would then say."""
        return self.case.mistakes if isinstance(self.case, DecoderSpec) else {}


def shrink(published: dict[str, Any], sizes: dict[str, Any], ids: dict[str, Any]) -> dict[str, Any]:
    """config.json with other sizes and ids of tokens, and all else as published. Raises ValueError for other keys."""
    if unknown := [key for key in sizes if key not in SIZES] + [key for key in ids if not key.endswith("_token_id")]:
        raise ValueError(f"not sizes: {unknown}")
    if missing := {key for key, value in published.items() if key.endswith("_token_id")} - ids.keys():
        raise ValueError(f"the ids of tokens that a small vocabulary has elsewhere: {missing}")
    inside = {key: value for key, value in sizes.items() if key == "original_max_position_embeddings"}
    config = published | {key: value for key, value in sizes.items() if key not in inside} | ids
    if inside:
        config["rope_scaling"] = published["rope_scaling"] | inside
    if config.keys() != published.keys():
        raise ValueError(f"not in the published file: {config.keys() - published.keys()}")
    return config


def _pooled(mode: str, width: int, *, normalize: bool = True) -> tuple[Module, ...]:
    """Pooling as sentence-transformers 2 wrote it, and Normalize."""
    flags = {f"pooling_mode_{flag}": flag == mode for flag in POOLING_FLAGS}
    pooling = Pooling({"word_embedding_dimension": width, **flags})
    return (pooling, Normalize()) if normalize else (pooling,)


def _architecture(repository: str) -> str:
    return str(PUBLISHED[repository]["config"]["architectures"][0])


BERT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 64,
}
PASSAGES = "Represent this sentence for searching relevant passages: "


def _bert(repository: str, vocab: int, covers: str, **details: Json) -> Row:
    case = CaseSpec(
        repository,
        covers,
        _architecture(repository),
        TokenizerSpec(Vocab.WORDPIECE, vocab, model_max_length=64),
        config=BERT_SIZES | {"vocab_size": vocab},
        **details,
    )
    return Row(case, {"pad_token_id": "[PAD]"})


def _roberta(repository: str, kind: Vocab, vocab: int, length: int, covers: str, **details: Json) -> Row:
    case = CaseSpec(
        repository,
        covers,
        _architecture(repository),
        TokenizerSpec(kind, vocab, model_max_length=length),
        config=BERT_SIZES | {"vocab_size": vocab, "max_position_embeddings": length + 2},
        **details,
    )
    return Row(case, {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"})


BERTS = (
    _bert(
        "mixedbread-ai/mxbai-embed-large-v1",
        290,
        "BertModel, first token, not normalised, f16",
        modules=_pooled("cls_token", 32, normalize=False),
        storage=Storage(dtype="float16", pooler=True),
        max_seq_length=64,
        prompts={"query": PASSAGES, "passage": ""},
    ),
    _bert(
        "BAAI/bge-large-en-v1.5",
        301,
        "BertModel, first token, normalised, position_ids, lower-cased twice, one label in a config of no classifier",
        modules=_pooled("cls_token", 32),
        storage=Storage(pooler=True, position_ids=True),
        max_seq_length=64,
        do_lower_case=True,
    ),
    _bert(
        "Snowflake/snowflake-arctic-embed-l",
        285,
        "BertModel, first token, normalised, a prompt for queries",
        modules=_pooled("cls_token", 32),
        max_seq_length=64,
        prompts={"query": PASSAGES},
    ),
    _bert(
        "ncbi/MedCPT-Cross-Encoder",
        310,
        "BertForSequenceClassification, one label, position_ids",
        storage=Storage(position_ids=True),
        layout=Layout.PLAIN,
    ),
)
ROBERTAS = (
    _roberta(
        "BAAI/bge-m3",
        Vocab.UNIGRAM,
        290,
        96,
        "XLMRobertaModel, first token, normalised, positions from 2",
        modules=_pooled("cls_token", 32),
        storage=Storage(pooler=True),
        max_seq_length=96,
    ),
    _roberta(
        "SamLowe/roberta-base-go_emotions",
        Vocab.BYTE_BPE,
        299,
        64,
        "RobertaForSequenceClassification, 28 labels, multi-label",
        layout=Layout.PLAIN,
    ),
    _roberta(
        "BAAI/bge-reranker-v2-m3",
        Vocab.UNIGRAM,
        300,
        96,
        "XLMRobertaForSequenceClassification, one label",
        layout=Layout.PLAIN,
    ),
)

DECODER_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
NO_WINDOW = {"no sliding window": {"sliding_window": None}}
THETA = {"rope_theta 10 times as large": {"rope_theta": 100000.0}}


def _mistral(repository: str, width: int, length: int, added: tuple[str, ...], covers: str, **details: Json) -> Row:
    tokenizer = DecoderTokenizer(Vocab.MISTRAL, 350 + len(added), eos=True, added=added)
    sizes = {"hidden_size": width, "intermediate_size": 48, "max_position_embeddings": 256, "sliding_window": 32}
    case = DecoderSpec(
        repository,
        covers,
        _architecture(repository),
        tokenizer,
        _pooled("lasttoken", width),
        DECODER_SIZES | sizes | {"vocab_size": tokenizer.size},
        max_seq_length=length,
        mistakes=NO_WINDOW | THETA | {"a window of one more": {"sliding_window": 33}},
        **details,
    )
    tokens: dict[str, str | tuple[str, ...]] = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "</s>"}
    return Row(case, {key: token for key, token in tokens.items() if key in PUBLISHED[repository]["config"]})


def _llama(repository: str, vocab: int, eos: str | tuple[str, ...], pad: str, template: str, covers: str) -> Row:
    added = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", pad)
    tokenizer = DecoderTokenizer(Vocab.LLAMA3, 305, added=added, pad=pad, model_max_length=256)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "max_position_embeddings": 256}
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    case = DecoderSpec(
        repository,
        covers,
        _architecture(repository),
        tokenizer,
        config=DECODER_SIZES | sizes | {"vocab_size": vocab, "original_max_position_embeddings": 16},
        storage=Storage(dtype="bfloat16", shards=2),
        layout=Layout.PLAIN,
        template=template,
        mistakes={
            "no rope scaling": {"rope_scaling": None},
            "linear rope scaling": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            "another original length": {"rope_scaling": scaling | {"original_max_position_embeddings": 256}},
            "rope_theta 10000": {"rope_theta": 10000.0},
        },
    )
    return Row(case, {"bos_token_id": "<|begin_of_text|>", "eos_token_id": eos, "pad_token_id": pad})


RERANK_PROMPT = (
    "<|endoftext|><|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n<|im_end|>"
    "\n<|im_start|>user\nquery: {query} \ndocument: {document} \nYou are a search relevance expert who evaluates how "
    "well documents match search queries. For each query-document pair, carefully analyze the semantic relationship "
    "between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
    "Relevance:<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA_CHAT = (
    "<|start_header_id|>user<|end_header_id|>\n\n{query}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{document}<|eot_id|>"
)
TULU_CHAT = "<|user|>\n{query}\n<|assistant|>\n{document}<|end_of_text|>"
QWEN_TOKENS: dict[str, str | tuple[str, ...]] = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"}

DECODERS = (
    _mistral(
        "Salesforce/SFR-Embedding-Mistral",
        48,
        128,
        (),
        "MistralModel, last token, normalised, a window, names without model., f16 in two shards",
        storage=Storage(dtype="float16", shards=2),
    ),
    _mistral(
        "BAAI/bge-en-icl",
        32,
        256,
        ("<instruct>", "<query>", "<response>"),
        "MistralModel, last token, normalised, a window, three tokens more than Mistral, f32 in two shards",
        storage=Storage(shards=2),
    ),
    Row(
        DecoderSpec(
            "BAAI/bge-multilingual-gemma2",
            "Gemma2Model, last token, normalised, soft cap, every other layer a window, heads wider than the model",
            "Gemma2Model",
            DecoderTokenizer(Vocab.GEMMA, 345, eos=True),
            _pooled("lasttoken", 28),
            {
                "hidden_size": 28,
                "head_dim": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 48,
                "max_position_embeddings": 128,
                "sliding_window": 64,
                "sliding_window_size": 64,
                "vocab_size": 345,
            },
            storage=Storage(shards=2),
            max_seq_length=128,
            prompts={
                "web_search_query": "<instruct>Given a web search query, retrieve relevant passages that answer the "
                "query.\n<query>"
            },
            mistakes={
                "no soft cap": {"attn_logit_softcapping": None},
                "windows in the other layers": {"layer_types": ["full_attention", "sliding_attention"]},
                "no windows": {"layer_types": ["full_attention", "full_attention"]},
                "scaled by the head's size": {"query_pre_attn_scalar": 8},
            },
        ),
        {"bos_token_id": "<bos>", "eos_token_id": "<eos>", "pad_token_id": "<pad>"},
    ),
    Row(
        DecoderSpec(
            "nomic-ai/nomic-embed-code",
            "Qwen2Model, last token, normalised, 7 query heads a key head, vocabulary longer than the tokenizer's",
            "Qwen2Model",
            DecoderTokenizer(Vocab.QWEN, 280, bos=False),
            _pooled("lasttoken", 42),
            {
                "hidden_size": 42,
                "num_hidden_layers": 2,
                "num_attention_heads": 7,
                "num_key_value_heads": 1,
                "intermediate_size": 32,
                "max_position_embeddings": 256,
                "vocab_size": 288,
            },
            storage=Storage(shards=2),
            max_seq_length=256,
            prompts={"query": "Represent this query for searching relevant code: "},
            mistakes={"rope_theta 10000": {"rope_theta": 10000.0}, "attends both ways": {"is_causal": False}},
        ),
        QWEN_TOKENS,
    ),
    _llama(
        "allenai/Llama-3.1-Tulu-3-8B-RM",
        312,
        "<|end_of_text|>",
        "<pad>",
        TULU_CHAT,
        "LlamaForSequenceClassification, one label, llama3 scaling, model. before the names, bf16 in two shards",
    ),
    _llama(
        "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2",
        305,
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "[PAD]",
        LLAMA_CHAT,
        "LlamaForSequenceClassification, one label, llama3 scaling, three tokens that end, bf16 in two shards",
    ),
    Row(
        DecoderSpec(
            "michaelfeil/mxbai-rerank-large-v2-seq",
            "Qwen2ForSequenceClassification, two labels, tied, a prompt that begins with the padding token, f16",
            "Qwen2ForSequenceClassification",
            DecoderTokenizer(Vocab.QWEN, 300, bos=False, model_max_length=512),
            config={
                "hidden_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                "intermediate_size": 40,
                "max_position_embeddings": 512,
                "vocab_size": 304,
            },
            storage=Storage(dtype="float16"),
            layout=Layout.PLAIN,
            template=RERANK_PROMPT,
            mistakes={"rope_theta 10000": {"rope_theta": 10000.0}},
        ),
        QWEN_TOKENS | {"pad_token_id": "<|endoftext|>"},
    ),
)

ROWS = (*BERTS, *ROBERTAS, *DECODERS)
