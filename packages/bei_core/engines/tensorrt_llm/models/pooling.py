"""Pooling of packed sequences: token vectors [T, H] to one row per sequence f32[B, H].

The modes are those of sentence-transformers' Pooling module, as in `openvino/pooling`. The code has no loop over
sequences and does not read values on the host, so that a CUDA graph can capture it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """Where the sequences of a batch lie among its T tokens.

    Rows of the dummy sequences that pad a CUDA graph have arbitrary values; TensorRT-LLM drops them.
    """

    starts: Tensor  # i64[B]
    ends: Tensor  # i64[B]
    pooled: Tensor  # bool[T], false for the tokens of a prompt that pooling leaves out

    @classmethod
    def of(cls, lengths: Tensor, pooled: Tensor) -> Spans:
        """The spans of consecutive sequences of these lengths i32[B]."""
        ends = torch.cumsum(lengths.long(), 0)
        return cls(ends - lengths, ends, pooled)

    def members(self) -> Tensor:
        """bool[B, T]: whether a token belongs to the sequence and is pooled."""
        index = torch.arange(len(self.pooled), device=self.pooled.device)
        return (index >= self.starts[:, None]) & (index < self.ends[:, None]) & self.pooled

    def first(self) -> Tensor:
        """i64[B]: index of each sequence's first token."""
        return self._clamp(self.starts)

    def last(self, real: Tensor | None = None) -> Tensor:
        """i64[B]: index of each sequence's last token; with `real` bool[T] its last real one, or its first if none."""
        if real is None:
            return self._clamp(self.ends - 1)
        index = torch.arange(len(real), device=real.device)
        found = torch.where(self.members() & real, index, -1).amax(1)
        return torch.where(found < 0, self.first(), found)

    def _clamp(self, index: Tensor) -> Tensor:
        return index.clamp(0, len(self.pooled) - 1)


def pool(mode: str, x: Tensor, spans: Spans) -> Tensor:
    """f32[B, H] of token vectors [T, H]."""
    return _MODES[mode](x, spans)


def _sums(x: Tensor, weights: Tensor) -> Tensor:
    """f32[B, H]: weighted sums of tokens; a matmul, because a scatter-add is not deterministic on a GPU."""
    return weights @ x.float()


def _count(members: Tensor) -> Tensor:
    return members.sum(1, keepdim=True).clamp(min=1).float()


def _mean(x: Tensor, spans: Spans) -> Tensor:
    members = spans.members()
    return _sums(x, members.float()) / _count(members)


def _mean_sqrt_len(x: Tensor, spans: Spans) -> Tensor:
    members = spans.members()
    return _sums(x, members.float()) / _count(members).sqrt()


def _weighted_mean(x: Tensor, spans: Spans) -> Tensor:
    """Mean in which token i (from 0) has the weight i + 1 (Muennighoff 2022, SGPT)."""
    index = torch.arange(len(x), device=x.device)
    weights = spans.members() * (index - spans.starts[:, None] + 1).float()
    return _sums(x, weights) / weights.sum(1, keepdim=True).clamp(min=1)


def _max(x: Tensor, spans: Spans) -> Tensor:
    index = torch.arange(len(x), device=x.device)
    sequence = torch.searchsorted(spans.ends, index, right=True)  # B for a token of no sequence
    sequence = torch.where(spans.pooled, sequence, len(spans.ends))
    maxima = torch.full((len(spans.ends) + 1, x.shape[1]), float("-inf"), device=x.device)
    maxima = maxima.scatter_reduce(0, sequence[:, None].expand(-1, x.shape[1]), x.float(), "amax")
    return maxima[:-1]


def _cls(x: Tensor, spans: Spans) -> Tensor:
    return x[spans.first()].float()


def _last_token(x: Tensor, spans: Spans) -> Tensor:
    return x[spans.last()].float()


_MODES: dict[str, Callable[[Tensor, Spans], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
