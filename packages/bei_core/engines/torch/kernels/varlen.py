"""Attention within each sequence of a packed batch, without padding.

On a GPU, one kernel computes the whole batch. It is FlashAttention, by `torch.nn.attention.varlen` if this version of
torch has it with the needed arguments, else by torch's internal operator. For soft-capped scores and biases by distance
it is FlexAttention. On a CPU, and in cases that these kernels do not support, a loop computes one sequence at a time.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.models.relative import DistanceBias, distances
from bei_core.engines.torch.models.sequences import Sequences, is_seen, object_of

# Returns numbers f32[N, Q, L] to add to the attention scores of one sequence, from some of its queries [N, Q, S], its
# keys [N, L, S] and the position of the first of these queries.
ScoreBias = Callable[[Tensor, Tensor, int], Tensor]

_QUERY_BLOCK = 1024  # queries at a time, to limit the memory for the scores of a long sequence
_MAX_HEAD_SIZE = 256  # of FlashAttention


@torch.library.custom_op(
    "bei::attention", mutates_args=(), schema="(Tensor query_key, Tensor value, Tensor layer, Tensor batch) -> Tensor"
)
def attention(query_key: Tensor, value: Tensor, layer: Tensor, batch: Tensor) -> Tensor:
    """`Attention.mix` as an operator of torch, for compiled layers.

    `layer` and `batch` are the handles of an `Attention` and its `Sequences`. torch.compile does not look into an
    operator, so a compiled layer is one graph, and attention may choose its kernel and loop over sequences on the host.
    """
    return object_of(layer).mix(query_key, value, object_of(batch))


@attention.register_fake
def _(query_key: Tensor, value: Tensor, layer: Tensor, batch: Tensor) -> Tensor:
    num_heads = query_key.shape[1] - value.shape[1]
    return query_key.new_empty(query_key.shape[0], num_heads * query_key.shape[2])


def is_flash(device: torch.device, dtype: torch.dtype, sizes: AttentionSizes, bias: ScoreBias | None) -> bool:
    """Whether FlashAttention supports this attention. It is one kernel for the batch; a CUDA graph can contain it."""
    if device.type != "cuda" or dtype == torch.float32 or bias is not None or sizes.soft_cap is not None:
        return False
    return sizes.head_size % 8 == 0 and sizes.head_size <= _MAX_HEAD_SIZE and _capability(device) >= (8, 0)


def is_flex(query: Tensor, sizes: AttentionSizes, bias: ScoreBias | None) -> bool:
    """Whether FlexAttention computes this attention, for which `is_flash` is false: a soft cap, a bias by distance."""
    has_scores = sizes.soft_cap is not None if bias is None else isinstance(bias, DistanceBias)
    return has_scores and query.is_cuda and query.dtype != torch.float32


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def flash(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, sizes: AttentionSizes) -> Tensor:
    """Returns [T, N, S] as `Attention.attend`, by one call of FlashAttention."""
    cu_seqlens, longest = sequences.cu_seqlens, sequences.max_len
    left = -1 if sizes.window is None else sizes.window - 1
    right = 0 if sizes.causal else left
    packed = (query, key, value, cu_seqlens, cu_seqlens, longest, longest)
    if (varlen := _find_varlen()) is not None:
        # `enable_gqa` also for models without grouped queries: without it, torch 2.14 takes cuDNN's attention on Hopper
        # and Blackwell, also if that is disabled (see `Kernels`).
        return varlen(*packed, scale=sizes.scale, window_size=(left, right), enable_gqa=True)
    sides = {} if sizes.window is None else {"window_size_left": left, "window_size_right": right}
    causal = sizes.causal and sizes.window is None
    return torch.ops.aten._flash_attention_forward(*packed, 0.0, causal, False, scale=sizes.scale, **sides)[0]


@functools.cache
def _find_varlen() -> Callable[..., Any] | None:
    """Returns torch's `varlen_attn`; None if this version lacks it, or its arguments for scale, window or GQA."""
    try:
        varlen: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    needed = {"scale", "window_size", "enable_gqa"}
    return varlen if needed <= inspect.signature(varlen).parameters.keys() else None


def flex(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, sizes: AttentionSizes, bias: Any = None
) -> Tensor:
    """Returns [T, N, S] as `Attention.attend`, by FlexAttention; `bias` is a DistanceBias or None.

    Its mask limits attention to tokens of the same sequence.
    """
    heads = (x.transpose(0, 1)[None] for x in (query, key, value))
    # Numbers of Python are tensors here, because torch.compile takes them for dynamic and cannot lower that.
    cap = sizes.soft_cap and _number(sizes.soft_cap, query.device)
    keys = queries = sequences.position_ids
    table = None
    if bias is not None:
        table, queries = bias.biases, queries + bias.max_len - 1
        torch._dynamo.mark_static(table)  # its shape is the same for all batches, and not all shapes can be dynamic

    def change(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        score = score if table is None else score + table[head, queries[q] - keys[k]]
        return score if cap is None else cap * torch.tanh(score / cap)

    mask = sequences.block_mask(causal=sizes.causal, window=sizes.window)
    attend = _compiled_flex(sizes, query.device)
    mixed = attend(*heads, score_mod=change, block_mask=mask, scale=sizes.scale, enable_gqa=True)
    return mixed[0].transpose(0, 1)


@functools.cache
def _number(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, device=device)


@functools.cache
def _compiled_flex(sizes: AttentionSizes, device: torch.device) -> Callable[..., Any]:
    """Returns FlexAttention as a fused kernel for layers of these sizes on a GPU.

    Uncompiled it would compute all T x T scores, so `fullgraph` makes torch raise an error in place of that.
    """
    flex_attention = importlib.import_module("torch.nn.attention.flex_attention").flex_attention
    return torch.compile(with_own_code(flex_attention), dynamic=True, fullgraph=True)


def with_own_code(function: Any) -> Any:
    """Returns the same function with a code object of its own.

    Torch compiles the same code at most `recompile_limit` times (8), then runs it uncompiled. With code of its own, a
    model, or a kind of layer on one of several GPUs, keeps clear of the limit of others.
    """
    code, defaults = function.__code__.replace(), function.__defaults__
    copy = FunctionType(code, function.__globals__, function.__name__, defaults, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def by_sequence(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, sizes: AttentionSizes, bias: ScoreBias | None
) -> Tensor:
    """Returns [T, N, S] as `Attention.attend`, one sequence at a time.

    The loop reads lengths on the host, so a CUDA graph cannot contain it.
    """

    def alone(*parts: Tensor) -> Tensor:
        query, key, value = (part.transpose(0, 1) for part in parts)
        return _attend_alone(query, key, value, sizes, bias).transpose(0, 1)

    return sequences.map(alone, query, key, value)


def _attend_alone(query: Tensor, key: Tensor, value: Tensor, sizes: AttentionSizes, bias: ScoreBias | None) -> Tensor:
    """Returns [N, L, S] for the queries [N, L, S], keys and values [K, L, S] of one sequence."""
    if sizes.is_plain and bias is None:
        return _sdpa(query, key, value, sizes, is_causal=sizes.causal)
    times = sizes.num_heads // sizes.num_kv_heads
    key, value = (x.repeat_interleave(times, 0) for x in (key, value))
    blocks = []
    for start in range(0, query.shape[1], _QUERY_BLOCK):
        rows = slice(start, start + _QUERY_BLOCK)
        mask = is_seen(distances(query[:, rows], key, start), causal=sizes.causal, window=sizes.window)
        if sizes.soft_cap is None and bias is None:
            blocks.append(_sdpa(query[:, rows], key, value, sizes, attn_mask=mask))
            continue
        scores = (query[:, rows] @ key.transpose(1, 2)).float() * sizes.scale
        scores = scores if bias is None else scores + bias(query[:, rows], key, start)
        if sizes.soft_cap is not None:
            scores = sizes.soft_cap * torch.tanh(scores / sizes.soft_cap)
        blocks.append(scores.masked_fill(~mask, float("-inf")).softmax(-1).to(value.dtype) @ value)
    return torch.cat(blocks, 1)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, sizes: AttentionSizes, **mask: Any) -> Tensor:
    heads = (x[None] for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads, **mask, scale=sizes.scale, enable_gqa=True)[0]
