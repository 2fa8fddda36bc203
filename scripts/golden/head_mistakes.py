"""The mistakes that an engine is likely to make with a sequence classifier, made on purpose to one that was right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from scripts.golden.mistakes import Mistake, Reach, fill, fine_mistakes, transformer_mistakes, transformer_of
from scripts.golden.spec import CaseSpec, Model
from scripts.golden.weights import draw

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
    """Hidden states f32[1, n, D] to logits f32[1, L]: what every family here has in common."""

    dense: Step
    activation: str
    out: Step
    token: str = "first token"

    def __call__(self, hidden: Tensor) -> Tensor:
        """The logits."""
        return self.out(ACTIVATIONS[self.activation](self.dense(TOKENS[self.token](hidden))))


def head_of(model: Model) -> Head:
    """The head as transformers computes it, from its own layers."""
    kind = model.config.model_type
    if kind == "bert":
        return Head(model.bert.pooler.dense, "tanh", model.classifier)
    if kind == "distilbert":
        return Head(model.pre_classifier, "relu", model.classifier)
    return Head(model.classifier.dense, "tanh", model.classifier.out_proj)


def rebuilt(change: Callable[[Head], Head]) -> Mistake:
    """What puts a changed head in place of the model's own."""

    def make(model: Model) -> None:
        head, transformer = change(head_of(model)), transformer_of(model)
        model.forward = lambda **inputs: SimpleNamespace(logits=head(transformer(**inputs)[0]))

    return make


def mistakes(spec: CaseSpec, model: Model, max_seq_length: int) -> dict[str, tuple[Mistake, Reach]]:
    """Name -> what spoils a copy of `model`, and who has to notice, for all that `spec` has."""
    found = transformer_mistakes(spec, model, max_seq_length) | _head_mistakes(spec, model)
    if spec.base == "BertModel":
        found["type ids dropped"] = fill("token_type_embeddings", lambda table: table[:1].expand_as(table).clone())
        found["type ids exchanged"] = fill("token_type_embeddings", lambda table: table.flip(0))
    wrong = {name: (make, Reach.EVERY_PRECISION) for name, make in found.items()}
    fine = fine_mistakes(model) | {
        "no bias in the dense layer": _dense(_without_bias),
        "no bias in the last layer": rebuilt(lambda head: replace(head, out=_without_bias(head.out))),
    }
    return wrong | {name: (make, Reach.F32_ONLY) for name, make in fine.items()}


def _head_mistakes(spec: CaseSpec, model: Model) -> dict[str, Mistake]:
    right = head_of(model)
    found = {name: _token(name) for name in TOKENS if name != right.token}
    found |= {f"{name} in the head": _activation(name) for name in ACTIVATIONS if name != right.activation}
    found["the dense layer left out"] = _dense(lambda _: lambda values: values)
    found["the last layer alone"] = rebuilt(
        lambda head: replace(head, dense=lambda values: values, activation="no activation")
    )
    if spec.storage.pooler and spec.base != "BertModel":
        pooler = _unused_pooler(spec, model)
        found["the unused pooler for the dense layer"] = _dense(lambda _: pooler)
        found["the unused pooler before the dense layer"] = _dense(
            lambda dense: lambda values: dense(torch.tanh(pooler(values)))
        )
    return found


def _token(name: str) -> Mistake:
    return rebuilt(lambda head: replace(head, token=name))


def _activation(name: str) -> Mistake:
    return rebuilt(lambda head: replace(head, activation=name))


def _dense(change: Callable[[Step], Step]) -> Mistake:
    return rebuilt(lambda head: replace(head, dense=change(head.dense)))


def _unused_pooler(spec: CaseSpec, model: Model) -> Step:
    """The layer that lies in the file and that transformers does not read."""
    width, name = model.config.hidden_size, f"{model.base_model_prefix}.pooler.dense"
    dtype = getattr(torch, spec.storage.dtype)
    weight = draw(spec.name, f"{name}.weight", (width, width)).to(dtype).float()
    bias = draw(spec.name, f"{name}.bias", (width,)).to(dtype).float()
    return lambda values: functional.linear(values, weight, bias)


def _without_bias(layer: Model) -> Step:
    return lambda values: functional.linear(values, layer.weight)
