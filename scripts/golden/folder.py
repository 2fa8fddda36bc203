"""A golden checkpoint's folder: everything in it except the weights is written here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from scripts.golden.spec import CaseSpec, Dense, Json, Layout, Module, Pooling
from scripts.golden.vocabulary import NAMES, tokenizer_config, train
from scripts.golden.weights import write_dense, write_model

BERT_KIND = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
}
# RoBERTa and its kin keep the first pad_token_id + 1 positions for nothing, hence 64 for 62 tokens.
CONFIGS: dict[str, dict[str, Any]] = {
    "BertModel": {"model_type": "bert", **BERT_KIND, "type_vocab_size": 2},
    "RobertaModel": {"model_type": "roberta", **BERT_KIND, "layer_norm_eps": 1e-5, "type_vocab_size": 1},
    "XLMRobertaModel": {"model_type": "xlm-roberta", **BERT_KIND, "layer_norm_eps": 1e-5, "type_vocab_size": 1},
    "MPNetModel": {"model_type": "mpnet", **BERT_KIND, "relative_attention_num_buckets": 32},
    "DistilBertModel": {
        "model_type": "distilbert",
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "activation": "gelu",
        "max_position_embeddings": 64,
        "sinusoidal_pos_embds": False,
    },
}
OLD_TYPES = "sentence_transformers.models"
MODERN_TYPES = {
    "Transformer": "sentence_transformers.base.modules.transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling",
    "Dense": "sentence_transformers.base.modules.dense",
    "Normalize": "sentence_transformers.base.modules.normalize",
}


def write_folder(folder: Path, spec: CaseSpec, texts: list[str]) -> None:
    """The whole checkpoint of `spec`, in place of whatever `folder` held."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = train(spec.tokenizer, texts)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_config(spec.tokenizer))
    write_json(folder / "config.json", _config(spec, tokenizer))
    write_model(folder, spec)
    write_modules(folder, spec)


def write_modules(folder: Path, spec: CaseSpec) -> None:
    """modules.json, what it names and the two files beside it; nothing where the layout has none of them."""
    if spec.layout is Layout.PLAIN:
        return
    names = ["Transformer", *(type(module).__name__ for module in spec.modules)]
    paths = ["", *(f"{position}_{name}" for position, name in enumerate(names[1:], start=1))]
    entries = zip(names, paths, strict=True)
    listing = [
        {"idx": position, "name": str(position), "path": path, "type": _type(name, spec.layout)}
        for position, (name, path) in enumerate(entries)
    ]
    write_json(folder / "modules.json", listing)
    write_json(folder / "sentence_bert_config.json", _transformer_config(spec))
    write_json(folder / "config_sentence_transformers.json", _model_config(spec))
    for module, path in zip(spec.modules, paths[1:], strict=True):
        _write_module(folder / path, spec, module)


def _config(spec: CaseSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    architecture = spec.architecture
    if spec.storage.head:
        architecture = architecture.removesuffix("Model") + "ForMaskedLM"
    ids = {role: tokenizer.token_to_id(token) for role, token in NAMES[spec.tokenizer.kind].items()}
    config = {"architectures": [architecture]} | CONFIGS[spec.base] | {"vocab_size": spec.tokenizer.size}
    config["pad_token_id"] = ids["pad"]
    if spec.base not in ("BertModel", "DistilBertModel"):
        config |= {"bos_token_id": ids["cls"], "eos_token_id": ids["sep"]}
    dtype = "dtype" if spec.layout is Layout.MODERN else "torch_dtype"  # renamed in transformers 5
    return config | {dtype: spec.storage.dtype} | spec.config


def _type(name: str, layout: Layout) -> str:
    return f"{MODERN_TYPES[name] if layout is Layout.MODERN else OLD_TYPES}.{name}"


def _transformer_config(spec: CaseSpec) -> dict[str, Any]:
    """sentence_bert_config.json; from 5.4 on it has no max_seq_length, which moved to tokenizer_config.json."""
    if spec.layout is Layout.LEGACY:
        return {"max_seq_length": spec.max_seq_length, "do_lower_case": spec.do_lower_case}
    task, output, name = ("feature-extraction", "last_hidden_state", "token_embeddings")
    if spec.is_classifier:
        task, output, name = ("sequence-classification", "logits", "scores")
    return {
        "transformer_task": task,
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": name,
    }


def _model_config(spec: CaseSpec) -> dict[str, Any]:
    """config_sentence_transformers.json."""
    legacy = {"sentence_transformers": "2.2.2", "transformers": "4.28.1", "pytorch": "2.0.1"}
    modern = {"pytorch": "2.15.0", "sentence_transformers": "6.2.0", "transformers": "5.23.0"}
    if spec.layout is Layout.LEGACY and not spec.prompts:
        return {"__version__": legacy}
    if spec.is_classifier:
        return {
            "__version__": modern,
            "activation_fn": "torch.nn.modules.linear.Identity",
            "default_prompt_name": spec.default_prompt_name,
            "model_type": "CrossEncoder",
            "prompts": spec.prompts,
        }
    return {
        "__version__": modern if spec.layout is Layout.MODERN else legacy | {"sentence_transformers": "3.0.1"},
        "default_prompt_name": spec.default_prompt_name,
        **({"model_type": "SentenceTransformer"} if spec.layout is Layout.MODERN else {}),
        "prompts": spec.prompts,
        "similarity_fn_name": "cosine",
    }


def _write_module(folder: Path, spec: CaseSpec, module: Module) -> None:
    if isinstance(module, Pooling):
        return write_json(folder / "config.json", module.config)
    modern = spec.layout is Layout.MODERN
    names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"} if modern else {}
    if isinstance(module, Dense):
        config = {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias,
            "activation_function": module.activation,
        }
        write_json(folder / "config.json", config | names)
        return write_dense(folder, spec, module)
    if modern:  # before, Normalize had no file, and so no folder in a repository
        write_json(folder / "config.json", names)


def write_json(path: Path, value: Json) -> None:
    """`path`, as people would indent it, and the folder it goes to."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
