"""The golden decoders that embed: between them every switch that the families have."""

from __future__ import annotations

from scripts.golden.decoders_folder import DecoderSpec
from scripts.golden.decoders_vocabulary import DecoderTokenizer
from scripts.golden.spec import Dense, Layout, Module, Normalize, Storage, Vocab
from scripts.golden.table import IDENTITY, booleans, named

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


def last(width: int) -> tuple[Module, ...]:
    """The last token's vector, normalised."""
    return (booleans(width, "lasttoken"), Normalize())


LLAMA = (
    DecoderSpec(
        name="llama-3-rope-last",
        covers="rope_scaling llama3 with wavelengths under, between and over its bounds, GQA 4/2, bos, last token",
        architecture="LlamaModel",
        tokenizer=DecoderTokenizer(Vocab.LLAMA3, 301, model_max_length=64),
        modules=last(32),
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
        },
        storage=Storage(dtype="bfloat16"),
        max_seq_length=60,
        mistakes={"no rope scaling": {"rope_scaling": None}},
    ),
    DecoderSpec(
        name="llama-biased-mean-f16",
        covers="attention_bias, mlp_bias, no GQA, head_dim 12 (hidden / heads is 8), model. prefix, f16, mean, gelu",
        architecture="LlamaModel",
        published_as="LlamaForCausalLM",
        tokenizer=DecoderTokenizer(Vocab.LLAMA3, 309, eos=True, left=False, pad="<|end_of_text|>"),
        modules=(booleans(32, "mean_tokens"), Normalize()),
        config={"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "head_dim": 12}
        | {"hidden_act": "gelu"},
        storage=Storage(dtype="float16", prefix="model."),
        max_seq_length=50,
        mistakes={"silu for gelu": {"hidden_act": "silu"}},
    ),
    DecoderSpec(
        name="llama-linear-rope-weightedmean",
        covers="rope_scaling linear by its old key, one layer, Llama 2's tokenizer, weighted mean, not normalised, f32",
        architecture="LlamaModel",
        tokenizer=DecoderTokenizer(Vocab.MISTRAL, 390, model_max_length=58),
        modules=(named(32, "weightedmean"),),
        config={"rope_scaling": {"type": "linear", "factor": 2.0}, "num_key_value_heads": 1, "num_hidden_layers": 1},
        max_seq_length=58,
        mistakes={"no rope scaling": {"rope_scaling": None}},
    ),
)

MISTRAL = (
    DecoderSpec(
        name="mistral-window-last",
        covers="sliding_window 8 on every layer, GQA 4/2, bos and eos, prompts, as e5-mistral-7b-instruct",
        architecture="MistralModel",
        tokenizer=DecoderTokenizer(Vocab.MISTRAL, 391, eos=True, model_max_length=64),
        modules=last(32),
        config={"sliding_window": 8},
        storage=Storage(dtype="float16"),
        layout=Layout.MODERN,
        prompts={"web_search_query": QUERY, "sts_query": "Instruct: Retrieve semantically similar text\nQuery: "},
        mistakes={
            "no sliding window": {"sliding_window": None},
            "window of 9": {"sliding_window": 9},
            "window of 7": {"sliding_window": 7},
        },
    ),
    DecoderSpec(
        name="mistral-wide-heads-bf16-sharded",
        covers="head_dim 16 where hidden / heads is 8, sliding_window null, bf16 in two shards, a prompt by default",
        architecture="MistralModel",
        tokenizer=DecoderTokenizer(Vocab.MISTRAL, 399, eos=True, left=False, wrap_class="PreTrainedTokenizerFast"),
        modules=last(32),
        config={"head_dim": 16, "sliding_window": None, "rope_theta": 1000000.0},
        storage=Storage(dtype="bfloat16", shards=2),
        max_seq_length=48,
        prompts={"query": "query: ", "document": ""},
        default_prompt_name="query",
    ),
)

QWEN2 = (
    DecoderSpec(
        name="qwen2-tied-lm-last",
        covers="biases that config.json does not mention, model. prefix of a tied Qwen2ForCausalLM, a window unused",
        architecture="Qwen2Model",
        published_as="Qwen2ForCausalLM",
        tokenizer=DecoderTokenizer(Vocab.QWEN, 299, bos=False, eos=True, model_max_length=512),
        modules=last(32),
        config={"tie_word_embeddings": True, "sliding_window": 8, "max_window_layers": 0},
        storage=Storage(dtype="bfloat16", prefix="model."),
        max_seq_length=62,
        prompts={"query": QUERY},
        mistakes={"a window though use_sliding_window is false": {"use_sliding_window": True}},
    ),
    DecoderSpec(
        name="qwen2-gte-both-ways",
        covers="is_causal false as gte-Qwen2-1.5B-instruct publishes it: every token sees every token; auto_map, f32",
        architecture="Qwen2Model",
        published_as="Qwen2ForCausalLM",
        tokenizer=DecoderTokenizer(Vocab.QWEN, 303, bos=False, eos=True),
        modules=last(32),
        config={
            "auto_map": {
                "AutoModel": "modeling_qwen.Qwen2Model",
                "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
                "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
            },
            "is_causal": False,
            "intermediate_size": 32,
            "sliding_window": 4096,
        },
        max_seq_length=56,
        prompts={"query": QUERY},
        mistakes={"causal": {"is_causal": True}},
    ),
    DecoderSpec(
        name="qwen2-upper-layers-slide",
        covers="use_sliding_window from max_window_layers 1 of 3 on, one key head, rope_parameters, files of 6.2",
        architecture="Qwen2Model",
        tokenizer=DecoderTokenizer(Vocab.QWEN, 310, bos=False, left=False, model_max_length=64),
        modules=(named(40, "mean"), Normalize()),
        config={
            "hidden_size": 40,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "intermediate_size": 44,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
        },
        storage=Storage(dtype="float16"),
        layout=Layout.MODERN,
        mistakes={
            "no sliding window": {"use_sliding_window": False, "layer_types": None},
            "every layer slides": {"max_window_layers": 0, "layer_types": None},
            "theta from elsewhere": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        },
    ),
)

QWEN3 = (
    DecoderSpec(
        name="qwen3-embedding",
        covers="as Qwen3-Embedding-0.6B: query and key norms, head_dim 16 (hidden / heads is 8), padded vocabulary",
        architecture="Qwen3Model",
        published_as="Qwen3ForCausalLM",
        tokenizer=DecoderTokenizer(Vocab.QWEN, 307, bos=False, eos=True, model_max_length=131072),
        modules=last(32),
        config={"head_dim": 16, "vocab_size": 320},
        storage=Storage(dtype="bfloat16"),
        layout=Layout.MODERN,
        prompts={"query": QUERY.removesuffix(" "), "document": ""},
    ),
    DecoderSpec(
        name="qwen3-five-heads-window-f16",
        covers="5 heads of 12 over 1 key head, attention_bias, upper layer slides by max_window_layers alone, 3 layers",
        architecture="Qwen3Model",
        tokenizer=DecoderTokenizer(Vocab.QWEN, 313, bos=False, eos=True),
        modules=(booleans(40, "lasttoken"),),
        config={
            "attention_bias": True,
            "head_dim": 12,
            "hidden_size": 40,
            "max_window_layers": 1,
            "num_attention_heads": 5,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 36,
            "rms_norm_eps": 1e-2,
            "rope_theta": 10000,
            "sliding_window": 7,
            "use_sliding_window": True,
        },
        storage=Storage(dtype="float16", prefix="model."),
        max_seq_length=64,
        mistakes={
            "no sliding window": {"use_sliding_window": False},
            "every layer slides": {"max_window_layers": 0},
            "rms_norm_eps 1e-6": {"rms_norm_eps": 1e-6},
        },
    ),
)

GEMMA2 = (
    DecoderSpec(
        name="gemma2-multilingual",
        covers="as bge-multilingual-gemma2: soft cap, query_pre_attn_scalar, every other layer slides, bos and eos",
        architecture="Gemma2Model",
        tokenizer=DecoderTokenizer(Vocab.GEMMA, 393, eos=True, model_max_length=64),
        modules=last(32),
        config={"attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 3, "num_hidden_layers": 3, "sliding_window": 8},
        storage=Storage(dtype="float16"),
        max_seq_length=64,
        prompts={"web_search_query": "<instruct>Given a web search query, retrieve passages.\n<query>"},
        mistakes={
            "no sliding window": {"sliding_window": 4096},
            "no soft cap": {"attn_logit_softcapping": None},
            "scale by head_dim": {"query_pre_attn_scalar": 8},
            "the other layers slide": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "window of 9": {"sliding_window": 9},
        },
    ),
    DecoderSpec(
        name="gemma2-wide-heads-mean-bf16",
        covers="head_dim 20 where hidden / heads is 8, model. prefix of Gemma2ForCausalLM, one key head, mean, no eos",
        architecture="Gemma2Model",
        published_as="Gemma2ForCausalLM",
        tokenizer=DecoderTokenizer(Vocab.GEMMA, 386, left=False),
        modules=(booleans(32, "mean_tokens"),),
        config={"attn_logit_softcapping": 5.0, "head_dim": 20, "num_key_value_heads": 1, "query_pre_attn_scalar": 7}
        | {"sliding_window": 4096, "intermediate_size": 40},
        storage=Storage(dtype="bfloat16", prefix="model."),
        max_seq_length=52,
        mistakes={"no soft cap": {"attn_logit_softcapping": None}, "scale by head_dim": {"query_pre_attn_scalar": 20}},
    ),
)

EMBEDDING_GEMMA_PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Classification": "task: classification | query: ",
}

GEMMA3 = (
    DecoderSpec(
        name="embedding-gemma",
        covers="as embeddinggemma-300m: both ways, window of 10 to both sides together, two thetas, two Dense, prompts",
        architecture="Gemma3TextModel",
        tokenizer=DecoderTokenizer(Vocab.GEMMA, 395, eos=True, left=False, model_max_length=64),
        modules=(
            booleans(36, "mean_tokens"),
            Dense(36, 144, IDENTITY, bias=False),
            Dense(144, 36, IDENTITY, bias=False),
            Normalize(),
        ),
        config={
            "_sliding_window_pattern": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 36,
            "intermediate_size": 40,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "rope_theta": 1000.0,
            "rope_local_base_freq": 10.0,
            "sliding_window": 10,
            "use_bidirectional_attention": True,
        },
        storage=Storage(dtype="bfloat16"),
        max_seq_length=64,
        prompts=EMBEDDING_GEMMA_PROMPTS,
        mistakes={
            "causal": {"use_bidirectional_attention": False, "sliding_window": 6},
            "no sliding window": {"sliding_window": 4096},
            "a window of 10 to each side": {"sliding_window": 18},
            "a window one wider": {"sliding_window": 12},
            "a window one narrower": {"sliding_window": 8},
            "every sixth layer": {"layer_types": None},
            "one theta": {"rope_local_base_freq": 1000.0},
        },
    ),
    DecoderSpec(
        name="gemma3-causal-pattern",
        covers="causal Gemma3TextModel, sliding_window_pattern 3 without layer_types, linear rope_scaling, last token",
        architecture="Gemma3TextModel",
        published_as="Gemma3ForCausalLM",
        tokenizer=DecoderTokenizer(Vocab.GEMMA, 388, model_max_length=60),
        modules=last(32),
        config={
            "num_hidden_layers": 3,
            "intermediate_size": 40,
            "query_pre_attn_scalar": 5,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1000.0,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "use_bidirectional_attention": False,
        },
        storage=Storage(dtype="float16", prefix="model."),
        max_seq_length=60,
        mistakes={
            "no sliding window": {"sliding_window": 4096},
            "every sixth layer": {"sliding_window_pattern": 6},
            "both ways": {"use_bidirectional_attention": True, "sliding_window": 12},
            "no rope scaling": {"rope_scaling": None},
            "one theta": {"rope_local_base_freq": 1000.0},
            "scale by head_dim": {"query_pre_attn_scalar": 8},
        },
    ),
    DecoderSpec(
        name="gemma3-rope-by-layer-type",
        covers="rope_parameters by type of layer as transformers 5 writes them, full layers first, mean, f32",
        architecture="Gemma3TextModel",
        tokenizer=DecoderTokenizer(Vocab.GEMMA, 384, eos=True, left=False, model_max_length=50),
        modules=(named(24, "mean"), Normalize()),
        config={
            "hidden_size": 24,
            "intermediate_size": 24,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"factor": 4.0, "rope_theta": 1000.0, "rope_type": "linear"},
                "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
            },
            "sliding_window": 9,
            "use_bidirectional_attention": True,
        },
        layout=Layout.MODERN,
        mistakes={
            "the other way round": {"layer_types": ["sliding_attention", "full_attention"]},
            "thetas as usual": {"rope_parameters": None},
            "a window of 9 to each side": {"sliding_window": 16},
        },
    ),
)

EMBEDDERS = (*LLAMA, *MISTRAL, *QWEN2, *QWEN3, *GEMMA2, *GEMMA3)
