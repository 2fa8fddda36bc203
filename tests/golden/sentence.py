"""Folders of sentence-transformers in the forms in which people publish them, for all that its own files can say.

Every folder has the same tiny BERT with random weights, or a table of token vectors; what differs are the files around
it. `scripts/golden/sentence.py` computes what sentence-transformers makes of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tests.golden.checkpoints import DATA, TOKENIZERS, Json
from tests.golden.weights import SCALES, Shape, draw, encode, safetensors

EXPECTED = DATA / "expected" / "sentence.safetensors"

Kind: TypeAlias = Literal["embedding", "cross-encoder", "sparse"]
Files: TypeAlias = dict[str, Json]  # path -> JSON
Weights: TypeAlias = dict[str, dict[str, Shape]]  # path of the folder -> name -> shape of each tensor

TEXTS = (
    "A wordpiece of Text, and NAMES.",
    "numbers 1 2 3",
    "the quick brown fox jumps over the lazy dog, and then it runs home again and sleeps for a very long time",
    "Ünïcode and CAPITALS",
)
PAIRS = tuple((TEXTS[0], text) for text in TEXTS[1:])

HIDDEN, INTERMEDIATE, POSITIONS = 16, 24, 48
TOKENIZER, CASED = "wordpiece-299.json", "wordpiece-299-cased.json"
VOCABULARY = 299

CONFIG: Json = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INTERMEDIATE,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": POSITIONS,
    "model_type": "bert",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.41.0",
    "type_vocab_size": 2,
    "vocab_size": VOCABULARY,
}
_LAYER = "encoder.layer.0."
BERT: dict[str, Shape] = {
    "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
    "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
    "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    "embeddings.LayerNorm.weight": (HIDDEN,),
    "embeddings.LayerNorm.bias": (HIDDEN,),
    **{f"{_LAYER}attention.self.{name}.weight": (HIDDEN, HIDDEN) for name in ("query", "key", "value")},
    **{f"{_LAYER}attention.self.{name}.bias": (HIDDEN,) for name in ("query", "key", "value")},
    f"{_LAYER}attention.output.dense.weight": (HIDDEN, HIDDEN),
    f"{_LAYER}attention.output.dense.bias": (HIDDEN,),
    f"{_LAYER}attention.output.LayerNorm.weight": (HIDDEN,),
    f"{_LAYER}attention.output.LayerNorm.bias": (HIDDEN,),
    f"{_LAYER}intermediate.dense.weight": (INTERMEDIATE, HIDDEN),
    f"{_LAYER}intermediate.dense.bias": (INTERMEDIATE,),
    f"{_LAYER}output.dense.weight": (HIDDEN, INTERMEDIATE),
    f"{_LAYER}output.dense.bias": (HIDDEN,),
    f"{_LAYER}output.LayerNorm.weight": (HIDDEN,),
    f"{_LAYER}output.LayerNorm.bias": (HIDDEN,),
    "pooler.dense.weight": (HIDDEN, HIDDEN),
    "pooler.dense.bias": (HIDDEN,),
}
CLASSIFIER: dict[str, Shape] = {
    **{f"bert.{name}": shape for name, shape in BERT.items()},
    "classifier.weight": (1, HIDDEN),
    "classifier.bias": (1,),
}
MASKED_LM: dict[str, Shape] = {
    **{f"bert.{name}": shape for name, shape in BERT.items() if not name.startswith("pooler")},
    "cls.predictions.bias": (VOCABULARY,),
    "cls.predictions.transform.dense.weight": (HIDDEN, HIDDEN),
    "cls.predictions.transform.dense.bias": (HIDDEN,),
    "cls.predictions.transform.LayerNorm.weight": (HIDDEN,),
    "cls.predictions.transform.LayerNorm.bias": (HIDDEN,),
}


@dataclass(frozen=True)
class Folder:
    """A folder, by what is in it besides the tokenizer."""

    files: Files
    weights: Weights
    kind: Kind = "embedding"
    tokenizer: str = TOKENIZER
    factor: int = 1  # of all weights outside of the first folder
    ints: dict[str, tuple[int, ...]] = field(default_factory=dict)  # tensors of integers in the first folder

    def write(self, folder: Path) -> Path:
        """Writes the files; returns the folder."""
        first, scales = next(iter(self.weights)), SCALES["encoder" if self.kind == "sparse" else "bert"]
        content = {path: json.dumps(value, indent=2).encode() for path, value in self.files.items()}
        content[f"{first}tokenizer.json"] = (TOKENIZERS / self.tokenizer).read_bytes()
        for place, shapes in self.weights.items():
            tensors = {
                name: (
                    "F32",
                    shape,
                    encode(draw(place, name, shape, scales) * (1 if place == first else self.factor), "F32"),
                )
                for name, shape in shapes.items()
            }
            if place == first:
                tensors |= {name: ("I64", (len(n),), encode(np.array(n), "I64")) for name, n in self.ints.items()}
            content[f"{place}model.safetensors"] = safetensors(tensors)
        for path, value in content.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(value)
        return folder


def modules(*kinds: str, package: str = "sentence_transformers.models", first: str = "Transformer") -> Json:
    """A modules.json as releases before 5.4 write it."""
    listed = [(first, ""), *((kind, f"{place}_{kind}") for place, kind in enumerate(kinds, 1))]
    return [
        {"idx": place, "name": str(place), "path": path, "type": f"{package}.{kind}"}
        for place, (kind, path) in enumerate(listed)
    ]


POOLING: Json = {
    "word_embedding_dimension": HIDDEN,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}
SETTINGS: Json = {"max_seq_length": 32, "do_lower_case": False}
VERSION: Json = {"sentence_transformers": "3.0.1", "transformers": "4.41.0", "pytorch": "2.3.0"}
MODEL: Json = {"__version__": VERSION, "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
PLAIN: Files = {
    "config.json": CONFIG,
    "modules.json": modules("Pooling"),
    "sentence_bert_config.json": SETTINGS,
    "config_sentence_transformers.json": MODEL,
    "1_Pooling/config.json": POOLING,
}
ACTIVATIONS = {
    "activation": ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "ELU", "Hardswish", "LeakyReLU", "Mish", "ReLU6", "SELU"),
    "activation ": ("Softplus", "Softsign"),
    "linear": ("Identity",),
}


def bert(files: Files, weights: Weights | None = None, **more: Any) -> Folder:  # noqa: ANN401
    """The tiny BERT with other files around it."""
    return Folder({**PLAIN, **files}, {"": BERT, **(weights or {})}, **more)


def dense(path: str = "torch.nn.modules.activation.Tanh", size: int = 6, given: int = HIDDEN, **more: Json) -> Json:
    """The config.json of a Dense module."""
    return {"in_features": given, "out_features": size, "bias": True, "activation_function": path, **more}


def linear(size: int = 6, given: int = HIDDEN, *, bias: bool = True) -> dict[str, Shape]:
    """The tensors of a Dense module."""
    return {"linear.weight": (size, given), **({"linear.bias": (size,)} if bias else {})}


def _with_activations() -> dict[str, Folder]:
    """A Dense with each activation, of vectors that are large enough to tell ReLU6 from ReLU."""
    found = {}
    for module, names in ACTIVATIONS.items():
        for name in names:
            files: Files = {"modules.json": modules("Pooling", "Dense")}
            files["2_Dense/config.json"] = dense(f"torch.nn.modules.{module.strip()}.{name}")
            found[f"dense-{name.lower()}"] = bert(files, {"2_Dense/": linear()}, factor=9)
    return found


def _in_folder(name: str) -> Folder:
    """The first release's form: the transformer has a folder of its own."""
    files = {f"{name}/{path}" if path in {"config.json", "sentence_bert_config.json"} else path: value
             for path, value in PLAIN.items()}  # fmt: skip
    files["modules.json"] = [{**entry, "path": entry["path"] or name} for entry in modules("Pooling")]
    return Folder(files, {f"{name}/": BERT})


NEW = "sentence_transformers.sentence_transformer.modules"
BASE = "sentence_transformers.base.modules"
SPARSE = "sentence_transformers.sparse_encoder.modules"
NEW_SETTINGS: Json = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
NEW_FILES: Files = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{NEW}.pooling.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{BASE}.dense.Dense"},
        {"idx": 3, "name": "3", "path": "3_Normalize", "type": f"{BASE}.normalize.Normalize"},
    ],
    "sentence_bert_config.json": NEW_SETTINGS,
    "tokenizer_config.json": {"model_max_length": 24, "tokenizer_class": "BertTokenizer", "do_lower_case": True},
    "config_sentence_transformers.json": {**MODEL, "model_type": "SentenceTransformer"},
    "1_Pooling/config.json": {"embedding_dimension": HIDDEN, "pooling_mode": "cls", "include_prompt": True},
    "2_Dense/config.json": dense(module_input_name="sentence_embedding", module_output_name="sentence_embedding"),
    "3_Normalize/config.json": {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
}
PROMPTED: Json = {**MODEL, "prompts": {"query": "the query: ", "document": ""}, "default_prompt_name": "query"}
EVERY_MODE: Json = {name: value or name.startswith("pooling") for name, value in POOLING.items()}
NO_PROMPT: Json = {**POOLING, "pooling_mode_max_tokens": True, "pooling_mode_lasttoken": True, "include_prompt": False}
SEVERAL: Files = {
    "modules.json": modules("Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "Dense", "Normalize"),
    "3_Dense/config.json": dense("torch.nn.modules.activation.ReLU", 12, bias=False),
    "4_LayerNorm/config.json": {"dimension": 12},
    "5_Dropout/config.json": {"dropout": 0.1},
    "6_Dense/config.json": dense("torch.nn.modules.linear.Identity", 5, 12),
}
SEVERAL_WEIGHTS: Weights = {
    "3_Dense/": linear(12, bias=False),
    "4_LayerNorm/": {"norm.weight": (12,), "norm.bias": (12,)},
    "6_Dense/": linear(5, 12),
}
NORMALIZED: Files = {"modules.json": modules("Pooling", "Normalize")}
HALVED: Json = {**MODEL, "truncate_dim": 7}
IDENTITY = "torch.nn.modules.linear.Identity"
RERANKER: Json = {
    **CONFIG,
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
}
RERANKER_TASK: Json = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
MASKED: Json = {**CONFIG, "architectures": ["BertForMaskedLM"]}
SPLADE_POOLING: Json = {
    "pooling_strategy": "max",
    "activation_function": "relu",
    "word_embedding_dimension": VOCABULARY,
}
SPLADE: Files = {
    "config.json": MASKED,
    "config_sentence_transformers.json": {**MODEL, "model_type": "SparseEncoder", "similarity_fn_name": "dot"},
    "1_SpladePooling/config.json": SPLADE_POOLING,
}
SPLADE_5: Files = {
    "modules.json": [
        {**each, "type": each["type"].replace("models.", "sparse_encoder.models.")}
        for each in modules("SpladePooling", first="MLMTransformer")
    ],
    "sentence_bert_config.json": SETTINGS,
}
FILL_MASK: Json = {**RERANKER_TASK, "transformer_task": "fill-mask", "module_output_name": "token_embeddings"}


def reranker(files: Files) -> Folder:
    """A CrossEncoder; releases before 5.4 write no modules.json."""
    return Folder({"config.json": RERANKER, **files}, {"": CLASSIFIER}, "cross-encoder")


def splade(files: Files) -> Folder:
    """A SparseEncoder."""
    return Folder({**SPLADE, **files}, {"": MASKED_LM}, "sparse")


def _pooled(**changed: str) -> Files:
    """The files of a SparseEncoder whose pooling has other settings."""
    return {**SPLADE_5, "1_SpladePooling/config.json": {**SPLADE_POOLING, **changed}}


def static(entries: Json, weights: Weights, files: Files | None = None, **more: Any) -> Folder:  # noqa: ANN401
    """Static embeddings."""
    return Folder({"modules.json": entries, **(files or {})}, weights, **more)


TABLE: dict[str, Shape] = {"embedding.weight": (VOCABULARY, HIDDEN)}
MODEL2VEC: Json = {
    "model_type": "model2vec",
    "architectures": ["StaticModel"],
    "tokenizer_name": "baai/bge-base-en-v1.5",
    "apply_pca": HIDDEN,
    "apply_zipf": True,
    "hidden_dim": HIDDEN,
    "seq_length": 1000000,
    "normalize": True,
}
POTION: Json = [
    {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
]
SHARED_ROWS = tuple((7 * token) % 50 for token in range(VOCABULARY))

FOLDERS: dict[str, Folder] = {
    "plain": bert({}),
    "idx-ignored": bert(
        {
            "modules.json": [{**each, "idx": 9 - each["idx"]} for each in modules("Pooling", "Dense")],
            "2_Dense/config.json": dense(),
        },
        {"2_Dense/": linear()},
    ),
    "first-module-in-0_BERT": _in_folder("0_BERT"),
    "first-module-in-transformer": _in_folder("0_Transformer"),
    **_with_activations(),
    "dense-residual": bert(
        {"modules.json": modules("Pooling", "Dense"), "2_Dense/config.json": dense(use_residual=True)},
        {"2_Dense/": {**linear(), "residual.weight": (6, HIDDEN)}},
    ),
    "several-modules": bert(SEVERAL, SEVERAL_WEIGHTS),
    "every-pooling-mode": bert({"1_Pooling/config.json": EVERY_MODE}),
    "prompt-not-pooled": bert({"1_Pooling/config.json": NO_PROMPT, "config_sentence_transformers.json": PROMPTED}),
    "default-prompt": bert({"config_sentence_transformers.json": PROMPTED}),
    "truncate-dim": bert({"config_sentence_transformers.json": HALVED}),
    "truncate-dim-after-normalize": bert({**NORMALIZED, "config_sentence_transformers.json": HALVED}),
    "truncate-dim-too-large": bert({"config_sentence_transformers.json": {**MODEL, "truncate_dim": 99}}),
    "length-above-the-tokenizers": bert(
        {"sentence_bert_config.json": {"max_seq_length": 20}, "tokenizer_config.json": {"model_max_length": 9}}
    ),
    "length-in-tokenizer-args": bert(
        {"sentence_bert_config.json": {**SETTINGS, "tokenizer_args": {"model_max_length": 11}}}
    ),
    "length-of-the-positions": bert({"sentence_bert_config.json": {"max_seq_length": None, "do_lower_case": False}}),
    "lower-case": bert({"sentence_bert_config.json": {**SETTINGS, "do_lower_case": True}}, tokenizer=CASED),
    "config-args": bert(
        {"sentence_bert_config.json": {**SETTINGS, "config_args": {"hidden_act": "relu"}, "model_args": {}}}
    ),
    "version-6": bert(NEW_FILES, {"2_Dense/": linear()}),
    "head-left-out": Folder({**PLAIN, "config.json": RERANKER}, {"": CLASSIFIER}),
    "static": static(modules(first="StaticEmbedding"), {"": TABLE}),
    "static-in-folder": static(
        [{**each, "path": each["path"] or "0_StaticEmbedding"} for each in modules(first="StaticEmbedding")],
        {"0_StaticEmbedding/": TABLE},
        {"config_sentence_transformers.json": {**MODEL, "truncate_dim": 10}},
    ),
    "static-prompt-dense": static(
        modules("Dense", "Normalize", first="StaticEmbedding"),
        {"": TABLE, "1_Dense/": linear()},
        {"1_Dense/config.json": dense(), "config_sentence_transformers.json": PROMPTED},
    ),
    "model2vec": static(POTION, {"": {"embeddings": (VOCABULARY, HIDDEN)}}, {"config.json": MODEL2VEC}),
    "model2vec-quantized": static(
        POTION,
        {"": {"embeddings": (50, HIDDEN), "weights": (VOCABULARY,)}},
        {"config.json": {**MODEL2VEC, "vocabulary_quantization": 50, "embedding_dtype": "float32"}},
        ints={"mapping": SHARED_ROWS},
    ),
    "cross-encoder": reranker({}),
    "cross-encoder-identity": reranker(
        {"config.json": {**RERANKER, "sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}}
    ),
    "cross-encoder-older": reranker({"config.json": {**RERANKER, "sbert_ce_default_activation_function": IDENTITY}}),
    "cross-encoder-sigmoid": reranker(
        {
            "config.json": {
                **RERANKER,
                "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"},
                "sbert_ce_default_activation_function": IDENTITY,
            }
        }
    ),
    "cross-encoder-6": reranker(
        {
            "modules.json": [{"idx": 0, "name": "0", "path": "", "type": f"{BASE}.transformer.Transformer"}],
            "sentence_bert_config.json": RERANKER_TASK,
            "config_sentence_transformers.json": {
                "model_type": "CrossEncoder",
                "__version__": VERSION,
                "prompts": {},
                "default_prompt_name": None,
                "activation_fn": IDENTITY,
            },
        }
    ),
    "splade": splade(SPLADE_5),
    "splade-sum": splade(_pooled(pooling_strategy="sum")),
    "splade-log1p-relu": splade(_pooled(activation_function="log1p_relu")),
    "splade-sum-log1p-relu": splade(_pooled(pooling_strategy="sum", activation_function="log1p_relu")),
    "splade-6": splade(
        {
            "modules.json": [
                {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.transformer.Transformer"},
                {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": f"{SPARSE}.splade_pooling.SpladePooling"},
            ],
            "sentence_bert_config.json": FILL_MASK,
        }
    ),
}
