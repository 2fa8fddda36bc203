"""All folders of `tests/golden/sentence.py`, and CrossEncoders whose modules give the scores."""

from __future__ import annotations

from tests.golden.sentence import (
    BASE,
    BERT,
    CONFIG,
    FOLDERS,
    HIDDEN,
    IDENTITY,
    NEW,
    NEW_SETTINGS,
    VERSION,
    Files,
    Folder,
    Json,
    Weights,
    dense,
    linear,
)

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
    "config_sentence_transformers.json": {
        "__version__": VERSION,
        "activation_fn": IDENTITY,
        "default_prompt_name": None,
        "model_type": "CrossEncoder",
        "prompts": {},
    },
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

FOLDERS = {
    **FOLDERS,
    "cross-encoder-pooled": Folder(ETTIN, ETTIN_WEIGHTS, "cross-encoder", factor=4),
    "cross-encoder-pooled-sigmoid": Folder(
        {**ETTIN, **SIGMOID}, {"": BERT, "2_Dense/": linear(1, 2 * HIDDEN)}, "cross-encoder"
    ),
}
