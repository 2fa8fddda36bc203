"""The optional fields of the requests for scores of every API, and what becomes of each; see `fields.py`."""

from __future__ import annotations

from tests.unit.http.fields import (
    CHAT,
    ENCODING,
    HONOURED,
    LONG,
    NO_EFFECT,
    PIPELINE,
    REFUSED,
    TEXTS,
    TOO_LONG,
    VLLM,
    VLLM_ONE,
    Request,
)

RANK = {"query": "what colour", "documents": ["red", "a blue house", LONG]}

SCORES = (
    Request(
        "NVIDIA",  # litellm's providers nvidia_nim and nvidia_nim/ranking, langchain_nvidia_ai_endpoints.NVIDIARerank
        "/v1/ranking",
        "ranker",
        {"query": {"text": "what colour"}, "passages": [{"text": "red"}, {"text": LONG}]},
        {"truncate": ("NONE", TOO_LONG), "top_k": (1, HONOURED), "user": ("u", NO_EFFECT)},
    ),
    Request(
        "NVIDIA",
        "/v1/retrieval/nvidia/llama-3_2-nv-rerankqa-1b-v2/reranking",
        "ranker",
        {"query": {"text": "what colour"}, "passages": [{"text": "red"}, {"text": LONG}]},
        {"truncate": ("NONE", TOO_LONG), "top_k": (1, HONOURED)},
    ),
    Request(
        "Cohere",  # cohere.Client.rerank
        "/v1/rerank",
        "ranker",
        RANK,
        {
            "top_n": (1, HONOURED),
            "rank_fields": (["title"], NO_EFFECT),  # the documents are texts
            "return_documents": (False, HONOURED),
            "max_chunks_per_doc": (3, REFUSED),
        },
    ),
    Request(
        "Cohere",  # cohere.ClientV2.rerank
        "/v2/rerank",
        "ranker",
        RANK,
        {
            "top_n": (1, HONOURED),
            "max_tokens_per_doc": (2, HONOURED),
            "relevant_spans": [(True, REFUSED), (False, NO_EFFECT)],
            "priority": (3, NO_EFFECT),
        },
    ),
    Request(
        "Voyage",  # voyageai.Client.rerank
        "/voyage/v1/rerank",
        "ranker",
        RANK,
        {"top_k": (1, HONOURED), "return_documents": (True, HONOURED), "truncation": (False, TOO_LONG)},
    ),
    Request(
        "Jina",  # api.jina.ai/openapi.json
        "/v1/rerank",
        "ranker",
        RANK,
        {
            "top_n": (1, HONOURED),
            "return_documents": (False, HONOURED),
            "return_embeddings": [(True, REFUSED), (False, NO_EFFECT)],
        },
    ),
    Request(
        "mixedbread",  # mixedbread.Mixedbread.rerank
        "/v1/reranking",
        "ranker",
        {"query": "what colour", "input": ["red", "a blue house"]},
        {
            "rank_fields": (["title"], NO_EFFECT),
            "top_k": (1, HONOURED),
            "return_input": (True, HONOURED),
            "rewrite_query": (True, REFUSED),
            "instruction": ("find colours", REFUSED),  # the model has no template
        },
    ),
    Request(
        "vLLM",  # vllm/entrypoints/pooling/scoring/protocol.py
        "/rerank",
        "ranker",
        RANK,
        {
            **VLLM,
            "top_n": (1, HONOURED),
            "use_activation": (False, HONOURED),
            "max_tokens_per_query": (3, REFUSED),
            "max_tokens_per_doc": (2, HONOURED),
            "chat_template": ("{{ a }}", REFUSED),
            "instruction": ("find colours", REFUSED),
            "prompt_name": ("query", REFUSED),
        },
    ),
    Request(
        "vLLM",
        "/score",
        "ranker",
        {"text_1": "what colour", "text_2": ["red", LONG]},
        {
            **VLLM,
            "use_activation": (False, HONOURED),
            "chat_template": ("{{ a }}", REFUSED),
            "instruction": ("find colours", REFUSED),
            "max_tokens_per_query": (3, REFUSED),
        },
    ),
    Request(
        "vLLM",  # vllm/entrypoints/pooling/classify/protocol.py
        "/vllm/classify",
        "classifier",
        {"input": TEXTS, "use_activation": False},
        {**VLLM_ONE, **CHAT, "use_activation": (True, HONOURED)},
    ),
    Request(
        "TEI",
        "/rerank",
        "ranker",
        {"query": "what colour", "texts": ["red", LONG]},
        {
            **ENCODING,
            "raw_scores": (True, HONOURED),
            "return_text": (True, HONOURED),
        },
    ),
    Request(
        "TEI",
        "/predict",
        "classifier",
        {"inputs": LONG, "raw_scores": True},
        {**ENCODING, "raw_scores": (False, HONOURED)},
    ),
    Request(
        "Hugging Face",  # huggingface_hub.InferenceClient.text_classification and zero_shot_classification
        "/predict",
        "classifier",
        {"inputs": "red", "parameters": {}},
        {
            "parameters": [
                ({"function_to_apply": "none"}, HONOURED),
                ({"top_k": 1}, HONOURED),
                ({"top_k": None}, NO_EFFECT),
                ({"return_all_scores": True}, NO_EFFECT),
                ({"return_all_scores": False}, HONOURED),
                ({"return_all_scores": False, "top_k": 9}, NO_EFFECT),
                ({"candidate_labels": ["a", "b"]}, REFUSED),
                ({"hypothesis_template": "a {}"}, REFUSED),
                ({"multi_label": True}, REFUSED),
                ({"unheard_of": 2}, REFUSED),
            ]
        },
    ),
    Request(
        "Hugging Face",
        "/predict",
        "classifier",
        {"inputs": LONG, "raw_scores": True, "parameters": {}},
        {"parameters": [*PIPELINE]},
    ),
    Request(
        "Hugging Face",  # huggingface_hub.InferenceClient.token_classification
        "/predict_tokens",
        "tagger",
        {"inputs": LONG, "parameters": {}},
        {
            "parameters": [
                ({"aggregation_strategy": "none"}, HONOURED),
                ({"ignore_labels": []}, HONOURED),
                ({"stride": 8}, REFUSED),
                ({"unheard_of": 2}, REFUSED),
                *PIPELINE,
            ]
        },
    ),
    Request(
        "BEI",
        "/predict_tokens",
        "tagger",
        {"inputs": "Anna met Bob in Rome"},
        {
            "raw_scores": (True, HONOURED),
            "aggregation_strategy": ("simple", HONOURED),
            "ignore_labels": (["O"], HONOURED),
            "max_tokens_per_doc": (2, HONOURED),
        },
    ),
    Request(
        "Elastic",  # elasticsearch's HuggingFaceRerankRequestEntity before it sent TEI's names
        "/elastic/rerank",
        "ranker",
        RANK,
        {"return_documents": (True, HONOURED), "top_n": (1, HONOURED), "max_chunks_per_doc": (3, REFUSED)},
    ),
    Request(
        "Elastic",  # elasticsearch's HuggingFaceRerankRequestEntity
        "/elastic/rerank",
        "ranker",
        {"texts": RANK["documents"], "query": "what colour"},
        {"return_text": (True, HONOURED), "top_n": (1, HONOURED)},
    ),
    Request(
        "Weaviate",  # weaviate/modules/reranker-transformers/clients: RankInput
        "/weaviate/rerank",
        "ranker",
        RANK,
        {"property": ("", NO_EFFECT)},
    ),
    Request(
        "Infinity",  # infinity_client.models.RerankInput
        "/infinity/rerank",
        "ranker",
        RANK,
        {"return_documents": (True, HONOURED), "raw_scores": (True, HONOURED), "top_n": (1, HONOURED)},
    ),
    Request(
        "Infinity",  # infinity_client.models.ClassifyInput
        "/classify",
        "classifier",
        {"input": TEXTS},
        {"raw_scores": (True, HONOURED)},
    ),
)
