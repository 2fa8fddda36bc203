"""Models of real size with random weights, made on this machine: the self-check needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from bei_core.bench.workload import words
from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.build import plan_build
from bei_core.engines.cache import publish_engine
from bei_core.engines.open import Opened, load
from bei_core.engines.registry import load_builder
from bei_core.engines.torch.tensorfile import Entry, write_tensors
from bei_core.models.spec import read_spec

Shapes = Iterator[tuple[str, tuple[int, ...]]]

_BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 512,
}
_MISTRAL: dict[str, Any] = {
    "architectures": ["MistralModel"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "max_position_embeddings": 32768,
}


def _sizes(hidden: int, layers: int, heads: int, inner: int, vocab: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
    }


_XLM_R = {**_BERT, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "pad_token_id": 1}
_XLM_R |= {"type_vocab_size": 1, "max_position_embeddings": 8194, "layer_norm_eps": 1e-5}

# By name: config.json. The tiny ones are for trying the script without a GPU.
CONFIGS: dict[str, dict[str, Any]] = {
    "bert-large": {**_BERT, **_sizes(1024, 24, 16, 4096, 30522)},
    "xlm-r-568m": {**_XLM_R, **_sizes(1024, 24, 16, 4096, 250002)},
    "mistral-7b": {**_MISTRAL, **_sizes(4096, 32, 32, 14336, 32000), "num_key_value_heads": 8},
    "tiny-bert": {**_BERT, **_sizes(64, 2, 2, 128, 4096)},
    "tiny-mistral": {**_MISTRAL, **_sizes(64, 2, 2, 128, 4096), "num_key_value_heads": 1},
}
MAX_LENGTH = 512


def make_checkpoint(name: str, made: Path) -> Path:
    """Writes the checkpoint of a model in `CONFIGS` into the new folder `made`; returns the folder.

    The weights are bf16. The tokenizer has about 4,000 pieces of English words. Texts have up to `MAX_LENGTH` tokens.
    """
    config = CONFIGS[name]
    (made / "1_Pooling").mkdir(parents=True)
    shapes = _decoder(config) if config["model_type"] == "mistral" else _bert(config)
    write_tensors(made / "model.safetensors", [_entry(*each) for each in shapes])
    _tokenizer(config).save(str(made / "tokenizer.json"))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
    for file, content in {
        "config.json": config,
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": MAX_LENGTH, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"},
    }.items():
        (made / file).write_text(json.dumps(content), encoding="utf-8")
    return made


def build_engine(model: str, folder: Path, *, name: str, compiled: bool = True, **settings: object) -> Opened:
    """Builds an engine folder of a model for the engine `name`, and returns the loaded engine.

    `compiled` has an effect on the torch engine on a GPU, whose compiler takes up to a minute for a model.
    """
    checkpoint = resolve(model)
    spec = read_spec(checkpoint)
    given = Settings.load({"engine": name, "torch_compile": compiled, **settings}, {"HOME": "/nonexistent"})
    publish_engine(folder, plan_build(load_builder(name), checkpoint, spec, given)[1])
    return load(folder, settings=given)


def _entry(name: str, shape: tuple[int, ...]) -> Entry:
    """Returns a tensor to write: bf16, norms 1, biases 0, other weights normal with deviation 0.02."""

    def read() -> np.ndarray[Any, Any]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        values = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        if "norm" in name.lower():
            values += float(name.endswith("weight"))
        elif name.endswith("weight"):
            values.normal_(0, 0.02)
        array: np.ndarray[Any, Any] = values.view(torch.uint16).cpu().numpy()
        return array

    return Entry(name, "BF16", shape, read)


def _linear(name: str, *shape: int) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _bert(config: dict[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], hidden)
    yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], hidden)
    yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], hidden)
    yield from _linear("embeddings.LayerNorm", hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}."
        square = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        yield from chain.from_iterable(_linear(prefix + name, hidden, hidden) for name in square)
        yield from _linear(f"{prefix}intermediate.dense", inner, hidden)
        yield from _linear(f"{prefix}output.dense", hidden, inner)
        yield from _linear(f"{prefix}attention.output.LayerNorm", hidden)
        yield from _linear(f"{prefix}output.LayerNorm", hidden)


def _decoder(config: dict[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv_width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"layers.{layer}."
        for name, rows in (("q", hidden), ("k", kv_width), ("v", kv_width), ("o", hidden)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "norm.weight", (hidden,)


def _tokenizer(config: dict[str, Any]) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([" ".join(words())], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    return tokenizer
