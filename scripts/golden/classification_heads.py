"""The mistakes that an engine is likely to make in the head of a BERT-like sequence classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch.nn import functional

from scripts.golden.kinds import Model
from scripts.golden.mistakes import Mistake, fill, transformer_of

Tensor: TypeAlias = Any
Step: TypeAlias = Callable[[Tensor], Tensor]

TOKENS: dict[str, Step] = {
    "first token": lambda hidden: hidden[:, 0],
    "second token": lambda hidden: hidden[:, 1],
    "last token": lambda hidden: hidden[:, -1],
    "mean of the tokens": lambda hidden: hidden.mean(dim=1),
    "max of the tokens": lambda hidden: hidden.max(dim=1).values,
}
ACTIVATIONS: dict[str, Step] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "no activation": lambda values: values,
}


@dataclass(frozen=True)
class Head:
    """A head that computes logits f32[1, L] from hidden states f32[1, n, D], as all these families do."""

    dense: Step
    activation: str
    out: Step
    token: str = "first token"

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns the logits f32[1, L]."""
        return self.out(ACTIVATIONS[self.activation](self.dense(TOKENS[self.token](hidden))))


def head_of(model: Model) -> Head:
    """Returns the head as transformers computes it, made of the model's layers."""
    kind = model.config.model_type
    if kind == "bert":
        return Head(model.bert.pooler.dense, "tanh", model.classifier)
    if kind == "distilbert":
        return Head(model.pre_classifier, "relu", model.classifier)
    return Head(model.classifier.dense, "tanh", model.classifier.out_proj)


def rebuilt(change: Callable[[Head], Head]) -> Mistake:
    """Returns a mistake that replaces the model's head by a changed one."""

    def make(model: Model) -> None:
        head, transformer = change(head_of(model)), transformer_of(model)
        model.forward = lambda **inputs: SimpleNamespace(logits=head(transformer(**inputs)[0]))

    return make


def head_mistakes(folder: Path, model: Model) -> dict[str, Mistake]:
    """Returns mistakes that are visible in every precision."""
    right = head_of(model)
    found = {name: _token(name) for name in TOKENS if name != right.token}
    found |= {f"{name} in the head": _activation(name) for name in ACTIVATIONS if name != right.activation}
    found["the dense layer left out"] = _dense(lambda _: lambda values: values)
    found["the last layer alone"] = rebuilt(
        lambda head: replace(head, dense=lambda values: values, activation="no activation")
    )
    if model.config.model_type == "bert":
        found["type ids dropped"] = fill("token_type_embeddings", lambda table: table[:1].expand_as(table).clone())
        found["type ids exchanged"] = fill("token_type_embeddings", lambda table: table.flip(0))
    elif pooler := _unused_pooler(folder, model):
        found["the unused pooler for the dense layer"] = _dense(lambda _: pooler)
        found["the unused pooler before the dense layer"] = _dense(
            lambda dense: lambda values: dense(torch.tanh(pooler(values)))
        )
    return found


def fine_head_mistakes() -> dict[str, Mistake]:
    """Returns mistakes that the rounding of bf16 may hide."""
    return {
        "no bias in the dense layer": _dense(_without_bias),
        "no bias in the last layer": rebuilt(lambda head: replace(head, out=_without_bias(head.out))),
    }


def _token(name: str) -> Mistake:
    return rebuilt(lambda head: replace(head, token=name))


def _activation(name: str) -> Mistake:
    return rebuilt(lambda head: replace(head, activation=name))


def _dense(change: Callable[[Step], Step]) -> Mistake:
    return rebuilt(lambda head: replace(head, dense=change(head.dense)))


def _unused_pooler(folder: Path, model: Model) -> Step | None:
    """Returns the pooler in the file, which transformers does not read; None if there is none."""
    path, name = folder / "model.safetensors", f"{model.base_model_prefix}.pooler.dense"
    tensors = load_file(path) if path.is_file() else {}
    if f"{name}.weight" not in tensors:
        return None
    weight, bias = tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()
    return lambda values: functional.linear(values, weight, bias)


def _without_bias(layer: Model) -> Step:
    return lambda values: functional.linear(values, layer.weight)
