"""All folders of `tests/golden/sentence.py`, CrossEncoders whose modules give the scores, and Routers."""

from __future__ import annotations

import json

from tests.golden.checkpoints import TOKENIZERS, Json
from tests.golden.sentence import (
    BASE,
    BERT,
    CONFIG,
    HIDDEN,
    IDENTITY,
    MASKED,
    MASKED_LM,
    MODEL,
    NEW,
    NEW_SETTINGS,
    SETTINGS,
    SPLADE_POOLING,
    TOKENIZER,
    VERSION,
    VOCABULARY,
    Files,
    Folder,
    Weights,
    dense,
    linear,
)
from tests.golden.sentence import FOLDERS as SENTENCE_FOLDERS

# config_sentence_transformers.json of a CrossEncoder without an activation and a prompt
CROSS_ENCODER: Json = {
    "__version__": VERSION,
    "activation_fn": IDENTITY,
    "default_prompt_name": None,
    "model_type": "CrossEncoder",
    "prompts": {},
}

GELU = "torch.nn.modules.activation.GELU"


def entries(*types: str) -> Json:
    """A modules.json with these types, each in a folder of its own but for the first."""
    names = [each.rpartition(".")[2] for each in types]
    folders = ["", *(f"{place}_{name}" for place, name in enumerate(names[1:], 1))]
    return [
        {"idx": place, "name": str(place), "path": folder, "type": kind}
        for place, (kind, folder) in enumerate(zip(types, folders, strict=True))
    ]


def scores(size: int, given: int) -> Json:
    """The config.json of the Dense that gives the scores."""
    names = {"module_input_name": "sentence_embedding", "module_output_name": "scores"}
    return dense(IDENTITY, size, given, **names)


# As cross-encoder/ettin-reranker-32m-v1.
ETTIN: Files = {
    "config.json": CONFIG,
    "modules.json": entries(
        f"{BASE}.transformer.Transformer",
        f"{NEW}.pooling.Pooling",
        f"{BASE}.dense.Dense",
        f"{NEW}.layer_norm.LayerNorm",
        f"{BASE}.dense.Dense",
    ),
    "sentence_bert_config.json": NEW_SETTINGS,
    "config_sentence_transformers.json": CROSS_ENCODER,
    "1_Pooling/config.json": {"embedding_dimension": HIDDEN, "pooling_mode": "cls", "include_prompt": True},
    "2_Dense/config.json": dense(
        GELU,
        HIDDEN,
        bias=False,
        module_input_name="sentence_embedding",
        module_output_name="sentence_embedding",
    ),
    "3_LayerNorm/config.json": {"dimension": HIDDEN},
    "4_Dense/config.json": scores(1, HIDDEN),
}
ETTIN_WEIGHTS: Weights = {
    "": BERT,
    "2_Dense/": linear(HIDDEN, bias=False),
    "3_LayerNorm/": {"norm.weight": (HIDDEN,), "norm.bias": (HIDDEN,)},
    "4_Dense/": linear(1),
}
SIGMOID: Files = {
    "modules.json": entries(
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.Dense",
    ),
    "1_Pooling/config.json": {"embedding_dimension": HIDDEN, "pooling_mode": ["cls", "mean"]},
    "2_Dense/config.json": scores(1, 2 * HIDDEN),
    "config_sentence_transformers.json": {"model_type": "CrossEncoder", "__version__": VERSION},
}


def router(types: dict[str, str], **parameters: Json) -> Json:
    """A router_config.json with the modules `types` (folder: type) of a query and of a document."""
    routes: dict[str, list[str]] = {"query": [], "document": []}
    for folder in types:
        routes["query" if folder.startswith("query") else "document"].append(folder)
    return {
        "types": types,
        "structure": routes,
        "parameters": {"default_route": "document", "allow_empty_key": True, **parameters},
    }


ROUTER: Json = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
TOKENIZER_FILE: Json = json.loads((TOKENIZERS / TOKENIZER).read_bytes())
QUERY = "query_0_SparseStaticEmbedding"
QUERY_FILES: Files = {
    f"{QUERY}/config.json": {"frozen": True},
    f"{QUERY}/tokenizer.json": TOKENIZER_FILE,
    f"{QUERY}/tokenizer_config.json": {"model_max_length": 512, "tokenizer_class": "BertTokenizer"},
}
QUERY_WEIGHTS: Weights = {f"{QUERY}/": {"weight": (VOCABULARY,)}}
# As opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill, whose document's transformer is in the root.
OPENSEARCH: Files = {
    "config.json": MASKED,
    "modules.json": ROUTER,
    "router_config.json": router(
        {
            QUERY: "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
            "": "sentence_transformers.sparse_encoder.models.MLMTransformer",
            "document_1_SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
        }
    ),
    "sentence_bert_config.json": SETTINGS,
    "config_sentence_transformers.json": {
        **MODEL,
        "model_type": "SparseEncoder",
        "prompts": {"query": "", "document": ""},
        "similarity_fn_name": "dot",
    },
    "document_1_SpladePooling/config.json": {**SPLADE_POOLING, "activation_function": "log1p_relu"},
    **QUERY_FILES,
}
# As Router of sentence-transformers saves its modules.
DOCUMENT = "document_0_Transformer"
SAVED: Files = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.router.Router"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{NEW}.normalize.Normalize"},
    ],
    "router_config.json": router(
        {
            "query_0_StaticEmbedding": f"{NEW}.static_embedding.StaticEmbedding",
            DOCUMENT: f"{BASE}.transformer.Transformer",
            "document_1_Pooling": f"{NEW}.pooling.Pooling",
        },
        route_mappings={},
    ),
    "config_sentence_transformers.json": {**MODEL, "prompts": {"query": "query: ", "document": ""}},
    f"{DOCUMENT}/config.json": CONFIG,
    f"{DOCUMENT}/sentence_bert_config.json": NEW_SETTINGS,
    "document_1_Pooling/config.json": {"embedding_dimension": HIDDEN, "pooling_mode": "mean", "include_prompt": True},
    "query_0_StaticEmbedding/tokenizer.json": TOKENIZER_FILE,
}

FOLDERS: dict[str, Folder] = {
    **SENTENCE_FOLDERS,
    "splade-router": Folder(OPENSEARCH, {"": MASKED_LM, **QUERY_WEIGHTS}, "sparse"),
    "router-in-folders": Folder(
        SAVED, {f"{DOCUMENT}/": BERT, "query_0_StaticEmbedding/": {"embedding.weight": (VOCABULARY, HIDDEN)}}
    ),
    "cross-encoder-pooled": Folder(ETTIN, ETTIN_WEIGHTS, "cross-encoder", factor=4),
    "cross-encoder-pooled-sigmoid": Folder(
        {**ETTIN, **SIGMOID}, {"": BERT, "2_Dense/": linear(1, 2 * HIDDEN)}, "cross-encoder"
    ),
}
