"""The mistakes that an engine is likely to make, made on purpose to a model that was right."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from scripts.golden.spec import CaseSpec, Model

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
NEIGHBOUR = {"gelu": "gelu_new", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "gelu", "silu": "gelu"}
VISIBLE_EPS = 1e-4  # a smaller layer_norm_eps changes nothing that f32 shows

Mistake = Callable[[Model], None]


class Reach(Enum):
    """Which tolerance has to notice."""

    EVERY_PRECISION = "f32 and bf16"
    F32_ONLY = "f32"


def mistakes(spec: CaseSpec, model: Model) -> dict[str, tuple[Mistake, Reach]]:
    """Name -> what spoils a copy of `model`, and who has to notice, for all that `spec` has."""
    found = transformer_mistakes(spec, model, model.max_seq_length) | _module_mistakes(model)
    wrong = {name: (make, Reach.EVERY_PRECISION) for name, make in found.items()}
    return wrong | {name: (make, Reach.F32_ONLY) for name, make in fine_mistakes(model).items()}


def transformer_of(model: Model) -> Model:
    """The encoder inside a SentenceTransformer or inside transformers' own class."""
    return model.base_model if isinstance(model, PreTrainedModel) else model[0].auto_model


def transformer_mistakes(spec: CaseSpec, model: Model, max_seq_length: int) -> dict[str, Mistake]:
    """Mistakes in the encoder that every precision shows."""
    transformer = transformer_of(model)
    names = [name for name, _ in transformer.named_parameters()]
    found = {"positions one late": fill("position_embeddings", lambda weight: weight.roll(1, 0))}
    if any("token_type_embeddings" in name for name in names):
        found["no token types"] = fill("token_type_embeddings", torch.zeros_like)
    if any("relative_attention_bias" in name for name in names):
        found["no relative positions"] = fill("relative_attention_bias", torch.zeros_like)
        if max_seq_length > 64:
            found["relative positions end at 64"] = _nearer_buckets
    if hasattr(transformer.embeddings, "padding_idx"):
        offset = transformer.embeddings.padding_idx + 1
        found["positions from 0"] = fill("position_embeddings", lambda weight: weight.roll(offset, 0))
        if extra := transformer.config.pad_token_id + 1 - offset:  # MPNet, which knows no padding id but 1
            found["positions by pad_token_id"] = fill("position_embeddings", lambda weight: weight.roll(-extra, 0))
    if spec.storage.gamma_beta:
        found["LayerNorm's gamma left at 1"] = fill("LayerNorm.weight", torch.ones_like)
    return found


def _module_mistakes(model: Model) -> dict[str, Mistake]:
    """Mistakes in what follows the transformer."""
    pooling, *rest = list(model)[1:]
    found: dict[str, Mistake] = {}
    if isinstance(pooling.pooling_mode, str):
        # The two differ by a factor, which Normalize removes.
        same = {"mean", "mean_sqrt_len_tokens"} if rest and isinstance(rest[0], Normalize) else set()
        others = [mode for mode in MODES if mode != pooling.pooling_mode and not {mode, pooling.pooling_mode} <= same]
        found |= {f"{mode} pooling": _pool(mode) for mode in others}
    else:
        found["concatenated backwards"] = _pool(pooling.pooling_mode[::-1])
    if not pooling.include_prompt:
        found["the prompt counts"] = _count_prompt
    for position, module in enumerate(rest, start=2):
        if isinstance(module, Normalize):
            found[f"module {position} does not normalise"] = _replace(position, nn.Identity())
        if isinstance(module, Dense):
            linear = isinstance(module.activation_function, nn.Identity)
            found[f"module {position} has another activation"] = _activate(position, nn.Tanh() if linear else nn.ReLU())
            if module.bias:
                found[f"module {position} has no bias"] = fill("linear.bias", torch.zeros_like)
    return found


def fine_mistakes(model: Model) -> dict[str, Mistake]:
    """Mistakes that bf16's own error may hide."""
    config = transformer_of(model).config
    activation = getattr(config, "hidden_act", None) or config.activation
    found: dict[str, Mistake] = {f"{NEIGHBOUR[activation]} for {activation}": _swap_activation(activation)}
    if getattr(config, "layer_norm_eps", 0) > VISIBLE_EPS:
        found["layer_norm_eps 1e-12"] = _usual_eps
    return found


def fill(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Mistake:
    """What changes every parameter that has `part` in its name."""

    def make(model: Model) -> None:
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.data = change(parameter.data)

    return make


def _pool(mode: str | tuple[str, ...]) -> Mistake:
    def make(model: Model) -> None:
        model[1] = Pooling(model[1].embedding_dimension, mode, include_prompt=model[1].include_prompt)

    return make


def _replace(position: int, module: nn.Module) -> Mistake:
    def make(model: Model) -> None:
        model[position] = module

    return make


def _activate(position: int, activation: nn.Module) -> Mistake:
    def make(model: Model) -> None:
        model[position].activation_function = activation

    return make


def _swap_activation(activation: str) -> Mistake:
    def make(model: Model) -> None:
        right, wrong = type(ACT2FN[activation]), ACT2FN[NEIGHBOUR[activation]]
        for module in transformer_of(model).modules():
            for name, value in list(module.named_children()):
                if type(value) is right:
                    setattr(module, name, wrong)

    return make


def _usual_eps(model: Model) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12


def _count_prompt(model: Model) -> None:
    model[1].include_prompt = True


def _nearer_buckets(model: Model) -> None:
    encoder = transformer_of(model).encoder
    right = type(encoder).relative_position_bucket
    encoder.relative_position_bucket = lambda offsets, num_buckets: right(offsets, num_buckets, max_distance=64)
