"""The models: all-MiniLM-L6-v2 as it is, and checkpoints of random weights in the shapes of larger models.

Random weights take the time that trained ones take. Their deviations keep the values of all layers in the range of a
trained model, so that 8 bits represent them about as well.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model, and the pooling of its vectors."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int = 0  # 0: an encoder like BERT; else a decoder like Qwen2
    vocab: int = 30522
    pooling: str = "cls"

    @property
    def flops_per_token(self) -> float:
        """FLOPs of the linear layers per token (a multiply-add counts as two)."""
        if not self.kv_heads:
            return 2.0 * self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.inner)
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.hidden // self.heads * self.kv_heads
        return 2.0 * self.layers * (attention + 3 * self.hidden * self.inner)


SHAPES = {
    "minilm": Shape(layers=6, hidden=384, inner=1536, heads=12, pooling="mean"),
    "bert-base": Shape(layers=12, hidden=768, inner=3072, heads=12),
    "bert-large": Shape(layers=24, hidden=1024, inner=4096, heads=16),
    "qwen2-0.5b": Shape(layers=24, hidden=896, inner=4864, heads=14, kv_heads=2, vocab=151936, pooling="last"),
}


def write(name: str, minilm: Path, folder: Path, rerank: bool) -> None:
    """Write a model into the folder; with `rerank`, an encoder with a classifier of one label.

    MiniLM's embedding model is a copy; everything else has random weights and MiniLM's tokenizer.
    """
    shape = SHAPES[name]
    if name == "minilm" and not rerank:
        shutil.copytree(minilm, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md", "data_config*"))
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in _TOKENIZER:
        shutil.copy(minilm / file, folder / file)
    _limit_length(folder / "tokenizer_config.json")
    config = _qwen2_config(shape) if shape.kv_heads else _bert_config(shape, rerank)
    _write_json(folder / "config.json", config)
    if not rerank:
        _write_pooling(shape, folder)
    save_file(
        _tensors(_qwen2(shape) if shape.kv_heads else _bert(shape, rerank), shape),
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1))


def _limit_length(file: Path) -> None:
    """Lets the tokenizer truncate at 512 tokens, where BERT's positions end."""
    _write_json(file, json.loads(file.read_text()) | {"model_max_length": 512})


def _write_pooling(shape: Shape, folder: Path) -> None:
    """The files in which sentence-transformers describes pooling and normalisation."""
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    kind = "sentence_transformers.models"
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"{kind}.{name}"}
        for index, (path, name) in enumerate(modules.items())
    ]
    _write_json(folder / "modules.json", listed)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    names = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
    modes = {f"pooling_mode_{name}": shape.pooling == pooling for pooling, name in names.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": shape.hidden, **modes})


def _bert_config(shape: Shape, rerank: bool) -> dict[str, object]:
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "architectures": ["BertForSequenceClassification" if rerank else "BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "intermediate_size": shape.inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        **_sizes(shape),
        **(labels if rerank else {}),
    }


def _qwen2_config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen2Model"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "intermediate_size": shape.inner,
        "max_position_embeddings": 4096,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "use_cache": False,
        **_sizes(shape),
    }


def _sizes(shape: Shape) -> dict[str, object]:
    return {
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "torch_dtype": "float32",
        "vocab_size": shape.vocab,
    }


def _bert(shape: Shape, rerank: bool) -> Shapes:
    hidden, prefix = shape.hidden, "bert." if rerank else ""
    tables = {"word": shape.vocab, "position": 512, "token_type": 2}
    found: Shapes = {f"embeddings.{name}_embeddings.weight": (rows, hidden) for name, rows in tables.items()}
    found |= {f"embeddings.LayerNorm.{part}": (hidden,) for part in ("weight", "bias")}
    for layer in range(shape.layers):
        found |= {f"encoder.layer.{layer}.{name}": sizes for name, sizes in _bert_layer(shape)}
    if rerank:
        found |= _linear("pooler.dense", hidden, hidden)
    found = {prefix + name: sizes for name, sizes in found.items()}
    return found | (_linear("classifier", 1, hidden) if rerank else {})


def _bert_layer(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = shape.hidden, shape.inner
    for part in ("query", "key", "value"):
        yield from _linear(f"attention.self.{part}", hidden, hidden).items()
    yield from _linear("attention.output.dense", hidden, hidden).items()
    yield from _linear("intermediate.dense", inner, hidden).items()
    yield from _linear("output.dense", hidden, inner).items()
    for norm in ("attention.output", "output"):
        yield from ((f"{norm}.LayerNorm.{part}", (hidden,)) for part in ("weight", "bias"))


def _qwen2(shape: Shape) -> Shapes:
    hidden, inner = shape.hidden, shape.inner
    narrow = hidden // shape.heads * shape.kv_heads
    found: Shapes = {"embed_tokens.weight": (shape.vocab, hidden), "norm.weight": (hidden,)}
    for layer in range(shape.layers):
        prefix = f"layers.{layer}."
        for part, width in {"q": hidden, "k": narrow, "v": narrow}.items():
            found |= _linear(f"{prefix}self_attn.{part}_proj", width, hidden)
        found[f"{prefix}self_attn.o_proj.weight"] = (hidden, hidden)
        found |= {f"{prefix}mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        found[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{prefix}{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    return found


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _tensors(shapes: Shapes, shape: Shape) -> dict[str, np.ndarray]:
    """Random f32 tensors, the same at every call."""
    rng = np.random.default_rng(0)
    found = {}
    for name, sizes in shapes.items():
        mean, deviation = _distribution(name, sizes, shape)
        values = rng.standard_normal(sizes, dtype=np.float32)
        found[name] = values * np.float32(deviation) + np.float32(mean)
    return found


def _distribution(name: str, sizes: tuple[int, ...], shape: Shape) -> tuple[float, float]:
    """(mean, deviation) of a tensor's values."""
    if name.endswith("norm.weight") or "LayerNorm.weight" in name:
        return 1.0, 0.1
    if len(sizes) == 1:
        return 0.0, 0.05
    if "embed" in name:
        return 0.0, 0.2 if "position" in name or "token_type" in name else 1.0
    added = name.endswith(("output.dense.weight", "o_proj.weight", "down_proj.weight"))  # to the residual stream
    gain = 1.1 if not added else 1.9 / math.sqrt(2 * shape.layers) if shape.kv_heads else 0.6
    return 0.0, gain / math.sqrt(sizes[1])
