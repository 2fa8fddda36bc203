"""Random weights that make a tiny model behave like a trained one where it matters, and their way into safetensors.

Initialised as usual, such a model answers every text with nearly the same vector and attends to everything alike, so
half of the possible mistakes in an engine would not show. Here words differ more than positions do, attention logits
spread by more than one, and every bias and LayerNorm weight is random too.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from scripts.golden.spec import CaseSpec, Dense, Storage

FEED_FORWARD_OUT = r"(?<!attention\.)output\.dense\.weight$|lin2\.weight$"
# Mean, deviation, and whether that is divided by the root of the fan-in (1 then keeps the variance of the input), by
# the first pattern that a tensor's name matches.
Scales: TypeAlias = tuple[tuple[str, float, float, bool], ...]
SCALES: Scales = (
    (r"layer_?norm\.(weight|gamma)$", 1.0, 0.25, False),
    (r"layer_?norm\.(bias|beta)$", 0.0, 0.1, False),
    (r"\.bias$", 0.0, 0.15, False),
    (r"word_embeddings", 0.0, 1.5, False),
    (r"(position|token_type)_embeddings", 0.0, 0.4, False),
    (r"relative_attention_bias", 0.0, 0.8, False),
    (FEED_FORWARD_OUT, 0.0, 1.8, True),
    (r"(^|\.)(classifier|out_proj)\.weight$", 0.0, 2.0, True),  # logits far enough apart to tell inputs from each other
    (r"", 0.0, 1.15, True),
)
HEADS: dict[str, dict[str, tuple[str, ...]]] = {
    "bert": {
        "cls.predictions.bias": ("vocab",),
        "cls.predictions.transform.dense.weight": ("width", "width"),
        "cls.predictions.transform.dense.bias": ("width",),
        "cls.predictions.transform.LayerNorm.weight": ("width",),
        "cls.predictions.transform.LayerNorm.bias": ("width",),
    },
    "distilbert": {
        "vocab_transform.weight": ("width", "width"),
        "vocab_transform.bias": ("width",),
        "vocab_layer_norm.weight": ("width",),
        "vocab_layer_norm.bias": ("width",),
        "vocab_projector.bias": ("vocab",),
    },
    "lm": {  # RoBERTa, XLM-R and MPNet
        "lm_head.bias": ("vocab",),
        "lm_head.dense.weight": ("width", "width"),
        "lm_head.dense.bias": ("width",),
        "lm_head.layer_norm.weight": ("width",),
        "lm_head.layer_norm.bias": ("width",),
    },
}

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]
Config: TypeAlias = Any  # transformers' configuration of some architecture


def draw(case: str, name: str, shape: tuple[int, ...], scales: Scales = SCALES) -> torch.Tensor:
    """The f32 tensor that belongs to these names, the same in every run and whatever else the case contains."""
    rng = np.random.default_rng([zlib.crc32(case.encode()), zlib.crc32(name.encode())])
    _, mean, scale, by_fan_in = next(row for row in scales if re.search(row[0], name, re.IGNORECASE))
    if by_fan_in:
        scale /= math.sqrt(shape[-1])
    values: npt.NDArray[np.float32] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)
    if re.search(FEED_FORWARD_OUT, name):
        # Activations are positive on average; rows that sum to nothing keep that average from moving every token of
        # every text in the same direction.
        values -= values.mean(axis=1, keepdims=True)
    return torch.from_numpy(values)


def write_model(folder: Path, spec: CaseSpec) -> None:
    """The transformer's safetensors, from the config.json that is in the folder already."""
    config: Config = AutoConfig.from_pretrained(folder)
    storage = spec.storage
    shapes = _classifier_shapes(config, storage) if spec.is_classifier else _shapes(config, storage)
    tensors = {_stored_name(name, storage): draw(spec.name, name, shape) for name, shape in shapes.items()}
    if storage.head:
        sizes = {"width": config.hidden_size, "vocab": config.vocab_size}
        head = HEADS.get(config.model_type, HEADS["lm"])
        tensors |= {name: draw(spec.name, name, tuple(sizes[size] for size in shape)) for name, shape in head.items()}
    tensors = {name: value.to(getattr(torch, storage.dtype)) for name, value in tensors.items()}
    if storage.position_ids:
        words = next(name for name in tensors if name.endswith(".word_embeddings.weight"))
        name = words.replace("word_embeddings.weight", "position_ids")
        tensors[name] = torch.arange(config.max_position_embeddings).unsqueeze(0)
    save(folder, tensors, storage.shards)


def write_dense(folder: Path, spec: CaseSpec, dense: Dense) -> None:
    """A Dense module's safetensors, in the dtype of the case."""
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (dense.out_features, dense.in_features)}
    if dense.bias:
        shapes["linear.bias"] = (dense.out_features,)
    dtype = getattr(torch, spec.storage.dtype)
    tensors = {name: draw(spec.name, f"{folder.name}.{name}", shape).to(dtype) for name, shape in shapes.items()}
    save(folder, tensors, shards=1)


def _shapes(config: Config, storage: Storage) -> Shapes:
    """Name -> shape of the bare transformer's tensors."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in AutoModel.from_config(config).state_dict().items()}
    return {name: shape for name, shape in shapes.items() if storage.pooler or not name.startswith("pooler.")}


def _classifier_shapes(config: Config, storage: Storage) -> Shapes:
    """Name -> shape of a sequence classifier's tensors, prefixed as transformers writes them."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if storage.pooler:  # transformers 3 and older wrote it beside a head that has a dense layer of its own
        pooler, width = f"{model.base_model_prefix}.pooler.dense", config.hidden_size
        shapes |= {f"{pooler}.weight": (width, width), f"{pooler}.bias": (width,)}
    return shapes


def _stored_name(name: str, storage: Storage) -> str:
    if storage.gamma_beta:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return storage.prefix + name


def save(folder: Path, tensors: Tensors, shards: int) -> None:
    """`model.safetensors`, or so many shards with the index that names each tensor's file."""
    if shards == 1:
        return _write(tensors, folder / "model.safetensors")
    files = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    weight_map = {name: files[position * shards // len(tensors)] for position, name in enumerate(tensors)}
    for file in files:
        _write({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    # One entry of metadata, because several would be written in the order of a hash map.
    save_file(dict(tensors), path, metadata={"format": "pt"})
