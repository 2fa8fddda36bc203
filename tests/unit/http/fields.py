"""The optional fields of the requests for vectors and tokens of every API, and what becomes of each.

`fields_scores.py` has those of the requests for scores; `test_every_field.py` tries them all.

They are those of each API's own description or client, which a comment names, as of November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class Outcome(Enum):
    """What becomes of a field."""

    HONOURED = "the reply differs from that without the field"
    REFUSED = "a 422 that names the field"
    NO_EFFECT = "the reply is the same, as in that API"
    TOO_LONG = "a 422 because a text is too long"


HONOURED, REFUSED, NO_EFFECT, TOO_LONG = Outcome
Fields: TypeAlias = Mapping[str, tuple[object, Outcome] | Sequence[tuple[object, Outcome]]]

LONG = "a cat and a dog " * 40  # more tokens than the models take
TEXTS = ["a red cat", LONG]
IMAGE = "data:image/png;base64,AA=="


@dataclass(frozen=True)
class Request:
    """A route of an API: a body, and the optional fields that it may have."""

    api: str
    path: str
    kind: str  # of model
    body: Mapping[str, object]
    fields: Fields


ENCODING = {"truncate": (False, TOO_LONG), "truncation_direction": ("Left", HONOURED)}
VLLM: Fields = {
    "truncate_prompt_tokens": [(5, HONOURED), (-1, NO_EFFECT), (0, REFUSED)],
    "padding": [("max_length", REFUSED), ("do_not_pad", NO_EFFECT)],
    "request_id": ("r", NO_EFFECT),
    "priority": (3, NO_EFFECT),
    "cache_salt": ("s", NO_EFFECT),
    "user": ("u", NO_EFFECT),
    "mm_processor_kwargs": ({"a": 1}, NO_EFFECT),  # for images
}
VLLM_ONE: Fields = {**VLLM, "truncation_side": ("left", HONOURED), "add_special_tokens": (False, HONOURED)}
PIPELINE: Sequence[tuple[object, Outcome]] = (  # of a tokenizer of transformers, in `parameters`; for texts too long
    ({"truncation": True}, NO_EFFECT),
    ({"truncation": "longest_first"}, NO_EFFECT),
    ({"truncation": False}, TOO_LONG),
    ({"truncation": "do_not_truncate"}, TOO_LONG),
    ({"truncation": "only_second"}, REFUSED),
    ({"max_length": 5}, HONOURED),
    ({"truncation": True, "max_length": 5, "padding": "max_length"}, HONOURED),
    ({"truncation": False, "max_length": 5}, REFUSED),
    ({"max_length": 0}, REFUSED),
    ({"padding": True}, NO_EFFECT),
    ({"padding": False}, NO_EFFECT),
)
CHAT: Fields = {"messages": ([{"role": "user", "content": "a"}], REFUSED)}
NO_CHAT: Fields = {  # vLLM reads these with `messages` only
    "chat_template": ("{{ a }}", NO_EFFECT),
    "chat_template_kwargs": ({}, NO_EFFECT),
    "add_generation_prompt": (True, NO_EFFECT),
    "continue_final_message": (True, NO_EFFECT),
    "media_io_kwargs": ({}, NO_EFFECT),
}
VECTORS = (
    Request(
        "OpenAI",  # openai.types.EmbeddingCreateParams
        "/v1/embeddings",
        "embedder",
        {"input": TEXTS},
        {"dimensions": (3, HONOURED), "encoding_format": ("base64", HONOURED), "user": ("u", NO_EFFECT)},
    ),
    Request(
        "vLLM",  # vllm/entrypoints/pooling/base/protocol.py
        "/v1/embeddings",
        "embedder",
        {"input": TEXTS, "encoding_format": "base64"},
        {
            **VLLM_ONE,
            **CHAT,
            **NO_CHAT,
            "dimensions": (3, HONOURED),
            "use_activation": (False, HONOURED),
            "normalize": (False, HONOURED),
            "embed_dtype": [("float16", HONOURED), ("bfloat16", HONOURED), ("fp8_e4m3", REFUSED)],
            "endianness": ("big", HONOURED),
        },
    ),
    Request(
        "Voyage",  # voyageai.Client.embed, docs.voyageai.com
        "/v1/embeddings",
        "embedder",
        {"input": TEXTS},
        {
            "input_type": [("query", HONOURED), ("document", HONOURED)],
            "truncation": [(False, TOO_LONG), (True, NO_EFFECT)],
            "output_dimension": (3, HONOURED),
            "output_dtype": [(kind, HONOURED) for kind in ("int8", "uint8", "binary", "ubinary")],
        },
    ),
    Request(
        "Jina",  # api.jina.ai/openapi.json
        "/v1/embeddings",
        "embedder",
        {"input": TEXTS[:1]},
        {
            "task": [("retrieval.query", HONOURED), ("retrieval.passage", HONOURED), ("code.query", REFUSED)],
            "dimensions": (3, HONOURED),
            "normalized": (False, HONOURED),
            "late_chunking": (True, HONOURED),
            "embedding_type": [(kind, HONOURED) for kind in ("base64", "binary", "ubinary")],
            "truncate": (True, NO_EFFECT),
            "return_multivector": [(True, REFUSED), (False, NO_EFFECT)],
        },
    ),
    Request(
        "mixedbread",  # mixedbread.Mixedbread.embed
        "/v1/embeddings",
        "embedder",
        {"input": TEXTS},
        {
            "dimensions": (3, HONOURED),
            "prompt": ("say: ", HONOURED),
            "normalized": (False, HONOURED),
            "encoding_format": (["float", "int8"], HONOURED),
        },
    ),
    Request(
        "NVIDIA",  # docs.nvidia.com, NeMo Retriever text embedding NIM
        "/v1/embeddings",
        "embedder",
        {"input": TEXTS},
        {
            "model": [("name-query", HONOURED), ("owner/name-passage", HONOURED), ("name", NO_EFFECT)],
            "input_type": [("query", HONOURED), ("passage", HONOURED)],
            "encoding_format": ("base64", HONOURED),
            "embedding_type": ("int8", HONOURED),
            "dimensions": (3, HONOURED),
            "truncate": [("NONE", TOO_LONG), ("START", HONOURED), ("END", NO_EFFECT)],
            "modality": [("image", REFUSED), ("text", NO_EFFECT)],
            "user": ("u", NO_EFFECT),
        },
    ),
    Request(
        "Cohere",  # cohere.Client.embed
        "/v1/embed",
        "embedder",
        {"texts": TEXTS},
        {
            "input_type": [("search_query", HONOURED), ("search_document", HONOURED), ("image", REFUSED)],
            "embedding_types": (["int8"], HONOURED),
            "truncate": [("NONE", TOO_LONG), ("START", HONOURED)],
            "images": ([IMAGE], REFUSED),
        },
    ),
    Request(
        "Cohere",  # cohere.ClientV2.embed
        "/v2/embed",
        "embedder",
        {"texts": TEXTS},
        {
            "input_type": ("search_query", HONOURED),
            "embedding_types": (["int8"], HONOURED),
            "truncate": [("NONE", TOO_LONG), ("START", HONOURED)],
            "images": ([IMAGE], REFUSED),
            "max_tokens": (5, HONOURED),
            "output_dimension": (3, HONOURED),
            "priority": (3, NO_EFFECT),
        },
    ),
    Request(
        "vLLM",
        "/score",
        "embedder",
        {"text_1": "what colour", "text_2": ["red", LONG]},
        {**VLLM, "use_activation": (False, NO_EFFECT), "instruction": ("find colours", REFUSED)},
    ),
    Request(
        "vLLM",  # vllm/entrypoints/pooling/pooling/protocol.py
        "/pooling",
        "embedder",
        {"input": TEXTS},
        {
            **VLLM_ONE,
            **CHAT,
            "task": [("token_embed", HONOURED), ("plugin", REFUSED)],
            "dimensions": (3, REFUSED),
            "use_activation": (False, HONOURED),
            "encoding_format": ("base64", REFUSED),
            "embed_dtype": ("float16", NO_EFFECT),  # of base64
            "endianness": ("big", NO_EFFECT),
        },
    ),
    Request(
        "vLLM",  # vllm/entrypoints/pooling/pooling/protocol.py
        "/pooling",
        "embedder",
        {"input": TEXTS, "task": "token_embed"},
        {**VLLM_ONE, "use_activation": (False, HONOURED)},
    ),
    Request(
        "vLLM",  # vllm/entrypoints/serve/tokenize/protocol.py
        "/tokenize",
        "embedder",
        {"prompt": "a red cat"},
        {
            "add_special_tokens": (False, HONOURED),
            "return_token_strs": (True, HONOURED),
            **CHAT,
        },
    ),
    Request(
        "TEI",  # docs/openapi.json of text-embeddings-inference
        "/embed",
        "embedder",
        {"inputs": TEXTS},
        {
            **ENCODING,
            "normalize": (False, HONOURED),
            "dimensions": (3, HONOURED),
            "prompt_name": [("query", HONOURED), ("unheard of", REFUSED)],
        },
    ),
    Request(
        "TEI",
        "/embed_all",
        "embedder",
        {"inputs": TEXTS},
        {**ENCODING, "prompt_name": ("query", HONOURED)},
    ),
    Request(
        "TEI",
        "/similarity",
        "embedder",
        {"inputs": {"source_sentence": "a red cat", "sentences": ["red", LONG]}},
        {
            "parameters": [
                ({"truncate": False}, TOO_LONG),
                ({"truncation_direction": "left"}, HONOURED),
                ({"prompt_name": "query"}, HONOURED),
            ]
        },
    ),
    Request(
        "TEI",
        "/tokenize",
        "embedder",
        {"inputs": TEXTS},
        {"add_special_tokens": (False, HONOURED), "prompt_name": ("query", HONOURED)},
    ),
    Request("TEI", "/decode", "embedder", {"ids": [2, 9, 3]}, {"skip_special_tokens": (False, HONOURED)}),
    Request(
        "Hugging Face",  # huggingface_hub.InferenceClient.feature_extraction
        "/embed",
        "embedder",
        {"inputs": TEXTS},
        {
            "encoding_format": [("base64", REFUSED), ("float", NO_EFFECT)],
            "parameters": [({"normalize": False}, REFUSED), ({}, NO_EFFECT), *PIPELINE],
        },
    ),
    Request(
        "Vertex",
        "/vertex",
        "embedder",
        {"instances": [{"inputs": "a red cat"}]},
        {"parameters": [({"outputDimensionality": 3}, REFUSED), ({}, NO_EFFECT), (None, NO_EFFECT)]},
    ),
    Request(
        "Infinity",  # infinity_client.models.OpenAIEmbeddingInputText
        "/embeddings",
        "embedder",
        {"input": TEXTS},
        {
            "encoding_format": ("base64", HONOURED),
            "dimensions": [(0, NO_EFFECT), (3, HONOURED)],
            "modality": [("text", NO_EFFECT), ("audio", REFUSED)],
            "user": ("u", NO_EFFECT),
        },
    ),
    Request(
        "Weaviate",  # weaviate/usecases/modulecomponents/clients/transformers: vecRequest and vecBatchRequest
        "/weaviate/vectors",
        "embedder",
        {"texts": TEXTS},
        {
            "config": [
                ({"pooling_strategy": "masked_mean"}, NO_EFFECT),  # the model's own
                ({"pooling_strategy": "cls"}, REFUSED),
                ({"task_type": "query"}, HONOURED),
                ({"task_type": "passage"}, HONOURED),
                ({"task_type": "other"}, REFUSED),
                ({"dimensions": 3}, HONOURED),
                ({"dimensions": 0}, REFUSED),
            ]
        },
    ),
    Request(
        "Ollama",  # ollama.Client.embed
        "/api/embed",
        "embedder",
        {"model": "name", "input": TEXTS},
        {
            "truncate": (False, TOO_LONG),
            "dimensions": (3, HONOURED),
            "keep_alive": ("5m", NO_EFFECT),
            "options": [({"num_ctx": 5}, HONOURED), ({"temperature": 0.5, "num_batch": 8}, NO_EFFECT)],
        },
    ),
    Request(
        "Ollama",  # ollama.Client.embeddings
        "/api/embeddings",
        "embedder",
        {"model": "name", "prompt": LONG},
        {"keep_alive": ("5m", NO_EFFECT), "options": ({"num_ctx": 5}, HONOURED)},
    ),
)
