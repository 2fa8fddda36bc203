"""The mistakes that an engine is likely to make in the layers of a transformer and in the modules after it.

A `Mistake` changes a correct model into a wrong one. A golden is useful only if wrong models fail the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import nn
from transformers.activations import ACT2FN

from scripts.golden.kinds import Late, Model
from tests.golden.checkpoints import Description

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
SAME_DIRECTION = {"mean", "mean_sqrt_len_tokens"}  # they differ by a factor, which Normalize removes
OTHER_ACTIVATION = {"gelu": "gelu_new", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "gelu", "silu": "gelu"}
VISIBLE_EPS = 1e-4  # a smaller layer_norm_eps changes nothing that f32 shows

Mistake = Callable[[Model], None]


def transformer_of(model: Model) -> Model:
    """Returns the encoder or decoder without a head."""
    if isinstance(model, Late):
        return model.encoder
    return model[0].auto_model if isinstance(model, nn.Sequential) else model.base_model


def is_decoder(case: Description) -> bool:
    """Whether the model has the layers of a decoder, even if its attention is not causal."""
    return case.scales in ("decoder", "gemma", "gemma_by_256")


def fill(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Mistake:
    """Returns a mistake that changes every parameter whose name contains `part`."""

    def make(model: Model) -> None:
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.data = change(parameter.data)

    return make


def bert_mistakes(case: Description, model: Model, max_seq_length: int) -> dict[str, Mistake]:
    """Returns mistakes in the embeddings and positions of BERT-like encoders."""
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
        if extra := transformer.config.pad_token_id + 1 - offset:  # MPNet assumes the padding id 1
            found["positions by pad_token_id"] = fill("position_embeddings", lambda weight: weight.roll(-extra, 0))
    if any("LayerNorm.gamma" in name for name in case.tensors()):
        found["LayerNorm's gamma left at 1"] = fill("LayerNorm.weight", torch.ones_like)
    return found


def fine_mistakes(model: Model) -> dict[str, Mistake]:
    """Returns mistakes that the rounding of bf16 may hide."""
    config = transformer_of(model).config
    activation = getattr(config, "hidden_act", None) or config.activation
    found: dict[str, Mistake] = {f"{OTHER_ACTIVATION[activation]} for {activation}": _swap_activation(activation)}
    if getattr(config, "layer_norm_eps", 0) > VISIBLE_EPS:
        found["layer_norm_eps 1e-12"] = _usual_eps
    return found


def gate_mistakes(model: Model) -> dict[str, Mistake]:
    """Returns the mistake of applying the activation to the wrong half of a gated MLP; empty if there is none."""
    gated = any(hasattr(module, "gate_proj") or hasattr(module, "Wi") for module in model.modules())
    return {"gate and value swapped": _swap_gates} if gated else {}


def silence(pattern: str) -> Mistake:
    """Returns a mistake that sets parameters to zero. It raises AssertionError if no name matches `pattern`."""

    def make(model: Model) -> None:
        found = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
        if not found:
            raise AssertionError(f"no parameter is called {pattern}")
        for parameter in found:
            parameter.data = torch.zeros_like(parameter)

    return make


def pooling_mistakes(model: Model) -> dict[str, Mistake]:
    """Returns mistakes in the pooling of a SentenceTransformer, and in the modules after it."""
    pooling, *rest = list(model)[1:]
    found: dict[str, Mistake] = {}
    if isinstance(pooling.pooling_mode, str):
        same = SAME_DIRECTION if _keeps_direction(rest) else set()
        others = [mode for mode in MODES if mode != pooling.pooling_mode and not {mode, pooling.pooling_mode} <= same]
        found |= {f"{mode} pooling": _pool(mode) for mode in others}
    else:
        found["concatenated in the opposite order"] = _pool(pooling.pooling_mode[::-1])
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


def _keeps_direction(modules: list[nn.Module]) -> bool:
    """Whether the output of the modules stays the same if their input is multiplied by a factor."""
    kept = [module for module in modules if not (isinstance(module, Dense) and _is_linear(module))]
    return bool(kept) and isinstance(kept[0], Normalize)


def _is_linear(module: Dense) -> bool:
    return isinstance(module.activation_function, nn.Identity) and not module.bias


def decoder_mistakes(model: Model) -> dict[str, Mistake]:
    """Returns mistakes in positions, attention and norms of a decoder."""
    decoder = transformer_of(model)
    names, config = [name for name, _ in decoder.named_parameters()], decoder.config
    is_gemma = config.model_type.startswith("gemma")
    found: dict[str, Mistake] = {
        "no positions": _no_positions,
        "rotary pairs of adjacent dimensions": _each_attention(_interleave),
        "norms of 1": fill("norm.weight", torch.zeros_like if is_gemma else torch.ones_like),
    }
    if 1 < config.num_key_value_heads < config.num_attention_heads:
        found["query heads share key heads in turn"] = _each_attention(_share_in_turn)
    if any(name.endswith("proj.bias") for name in names):
        found["no biases"] = fill("proj.bias", torch.zeros_like)
    if any("q_norm" in name for name in names):
        found["no norm of queries and keys"] = _each_attention(_unnormed)
    if is_gemma:
        found["norms scale by weight, not 1 + weight"] = fill("norm.weight", lambda weight: weight - 1)
        found["embeddings are not scaled"] = fill("embed_tokens", lambda weight: weight / config.hidden_size**0.5)
    if hasattr(model, "lm_head") and not model.config.tie_word_embeddings:
        found["embeddings for lm_head"] = _tie
    return found


def _pool(mode: str | tuple[str, ...]) -> Mistake:
    def make(model: Model) -> None:
        model[1] = Pooling(model[1].embedding_dimension, mode, include_prompt=model[1].include_prompt)

    return make


def _replace(position: int, module: nn.Module) -> Mistake:
    def make(model: SentenceTransformer) -> None:
        model[position] = module

    return make


def _activate(position: int, activation: nn.Module) -> Mistake:
    def make(model: Model) -> None:
        model[position].activation_function = activation

    return make


def _swap_activation(activation: str) -> Mistake:
    def make(model: Model) -> None:
        right, wrong = type(ACT2FN[activation]), ACT2FN[OTHER_ACTIVATION[activation]]
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


def _swap_gates(model: Model) -> None:
    for module in model.modules():
        if hasattr(module, "gate_proj"):
            module.gate_proj, module.up_proj = module.up_proj, module.gate_proj
        elif hasattr(module, "Wi"):
            for parameter in module.Wi.parameters():
                parameter.data = parameter.data.roll(len(parameter) // 2, 0)


def _each_attention(change: Callable[[nn.Module], None]) -> Mistake:
    def make(model: Model) -> None:
        for module in list(model.modules()):
            if hasattr(module, "q_proj"):
                change(module)

    return make


def _no_positions(model: Model) -> None:
    for name, value in model.named_buffers():
        if name.endswith("inv_freq"):
            value.zero_()


def _share_in_turn(attention: nn.Module) -> None:
    """Makes query head i use key head i % k, not i // (q / k)."""
    size, groups = attention.head_dim, attention.num_key_value_groups
    queries = attention.q_proj.weight.shape[0] // size
    order = sorted(range(queries), key=lambda head: head % (queries // groups))
    rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in order])
    attention.q_proj.weight.data = attention.q_proj.weight.data[rows]
    if attention.q_proj.bias is not None:
        attention.q_proj.bias.data = attention.q_proj.bias.data[rows]
    attention.o_proj.weight.data = attention.o_proj.weight.data[:, rows]


def _interleave(attention: nn.Module) -> None:
    """Reorders each head's rows, so that dimensions 2 i and 2 i + 1 are rotated together, not i and i + d / 2."""
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


def _tie(model: Model) -> None:
    model.lm_head.weight.data = model.model.embed_tokens.weight.data
