"""The mistakes that an engine is likely to make, made on purpose to a model that was right."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch  # type: ignore[import-not-found]
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling  # type: ignore[import-not-found]
from torch import nn
from transformers.activations import ACT2FN  # type: ignore[import-not-found]

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
    names = [name for name, _ in model[0].auto_model.named_parameters()]
    found = {"positions one late": _fill("position_embeddings", lambda weight: weight.roll(1, 0))}
    if any("token_type_embeddings" in name for name in names):
        found["no token types"] = _fill("token_type_embeddings", torch.zeros_like)
    if any("relative_attention_bias" in name for name in names):
        found["no relative positions"] = _fill("relative_attention_bias", torch.zeros_like)
        if model.max_seq_length > 64:
            found["relative positions end at 64"] = _nearer_buckets
    if hasattr(model[0].auto_model.embeddings, "padding_idx"):
        offset = model[0].auto_model.embeddings.padding_idx + 1
        found["positions from 0"] = _fill("position_embeddings", lambda weight: weight.roll(offset, 0))
    if spec.storage.gamma_beta:
        found["LayerNorm's gamma left at 1"] = _fill("LayerNorm.weight", torch.ones_like)
    wrong = {name: (make, Reach.EVERY_PRECISION) for name, make in (found | _module_mistakes(model)).items()}
    return wrong | {name: (make, Reach.F32_ONLY) for name, make in _fine_mistakes(model).items()}


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
                found[f"module {position} has no bias"] = _fill("linear.bias", torch.zeros_like)
    return found


def _fine_mistakes(model: Model) -> dict[str, Mistake]:
    """Mistakes that bf16's own error may hide."""
    config = model[0].auto_model.config
    activation = getattr(config, "hidden_act", None) or config.activation
    found: dict[str, Mistake] = {f"{NEIGHBOUR[activation]} for {activation}": _swap_activation(activation)}
    if getattr(config, "layer_norm_eps", 0) > VISIBLE_EPS:
        found["layer_norm_eps 1e-12"] = _usual_eps
    return found


def _fill(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Mistake:
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
        for module in model[0].modules():
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
    encoder = model[0].auto_model.encoder
    right = type(encoder).relative_position_bucket
    encoder.relative_position_bucket = lambda offsets, num_buckets: right(offsets, num_buckets, max_distance=64)
