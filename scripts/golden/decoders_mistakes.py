"""The mistakes that an engine is likely to make with a decoder, made on purpose to a model that was right."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.golden.decoders_folder import DecoderSpec
from scripts.golden.mistakes import Mistake, fill
from scripts.golden.spec import Model


@contextmanager
def reconfigured(folder: Path, changes: dict[str, Any]) -> Iterator[Path]:
    """A copy of `folder` whose config.json says something else."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
        (copy / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        yield copy


def decoder_mistakes(spec: DecoderSpec, decoder: Model) -> dict[str, Mistake]:
    """Mistakes in the layers, as changes of the weights of the transformer `decoder` or of what contains it."""
    names = [name for name, _ in decoder.named_parameters()]
    config = decoder.config
    is_gemma = spec.family.startswith("Gemma")
    plain = torch.zeros_like if is_gemma else torch.ones_like
    found: dict[str, Mistake] = {
        "no positions": _still,
        "neighbours turned together": _layers(_interleave),
        "norms of 1": fill("norm.weight", plain),
    }
    if 1 < config.num_key_value_heads < config.num_attention_heads:
        found["key heads dealt out in turn"] = _layers(_deal)
    if any(name.endswith("proj.bias") for name in names):
        found["no biases"] = fill("proj.bias", torch.zeros_like)
    if any("q_norm" in name for name in names):
        found["no norm of queries and keys"] = _layers(_unnormed)
    if is_gemma:
        found["norms scale by weight, not 1 + weight"] = fill("norm.weight", lambda weight: weight - 1)
        found["embeddings are not scaled"] = fill("embed_tokens", lambda weight: weight / config.hidden_size**0.5)
    return found


def _layers(change: Callable[[nn.Module], None]) -> Mistake:
    """What changes every attention of a model."""

    def make(model: Model) -> None:
        for module in list(model.modules()):
            if hasattr(module, "q_proj"):
                change(module)

    return make


def _still(model: Model) -> None:
    for name, value in model.named_buffers():
        if name.endswith("inv_freq"):
            value.zero_()


def _deal(attention: nn.Module) -> None:
    """Query head i then looks at key head i % k, not at i // (q / k)."""
    size, groups = attention.head_dim, attention.num_key_value_groups
    queries = attention.q_proj.weight.shape[0] // size
    order = sorted(range(queries), key=lambda head: head % (queries // groups))
    rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in order])
    attention.q_proj.weight.data = attention.q_proj.weight.data[rows]
    if attention.q_proj.bias is not None:
        attention.q_proj.bias.data = attention.q_proj.bias.data[rows]
    attention.o_proj.weight.data = attention.o_proj.weight.data[:, rows]


def _interleave(attention: nn.Module) -> None:
    """Rotation then pairs dimension 2 i with 2 i + 1, not i with i + d / 2: another order of each head's rows."""
    size = attention.head_dim
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])
    for name in ("q", "k"):
        projection = getattr(attention, f"{name}_proj")
        for parameter in (projection.weight, projection.bias):
            if parameter is not None:
                parameter.data = parameter.data.unflatten(0, (-1, size))[:, order].flatten(0, 1)
        if norm := getattr(attention, f"{name}_norm", None):
            norm.weight.data = norm.weight.data[order]


def _unnormed(attention: nn.Module) -> None:
    attention.q_norm, attention.k_norm = nn.Identity(), nn.Identity()
