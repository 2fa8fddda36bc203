"""Token vectors to one row a text, packed: plain torch without a loop or a look at the host, so that a graph holds it.

Letters: T tokens of the batch, B texts, H hidden. The poolings are sentence-transformers', as in `openvino/pooling`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """The texts of a batch. Rows of the padding that a CUDA graph adds are whatever; nobody reads them."""

    starts: Tensor  # i64[B]
    ends: Tensor  # i64[B]
    kept: Tensor  # bool[T], whether a token counts: all but those of a prompt that pooling leaves out

    @classmethod
    def of(cls, lengths: Tensor, kept: Tensor) -> Spans:
        """The spans of texts of these lengths, i32[B], laid end to end."""
        ends = torch.cumsum(lengths.long(), 0)
        return cls(ends - lengths, ends, kept)

    def members(self) -> Tensor:
        """bool[B, T]: whether a token is of the text, and counts."""
        at = torch.arange(len(self.kept), device=self.kept.device)
        return (at >= self.starts[:, None]) & (at < self.ends[:, None]) & self.kept

    def first(self) -> Tensor:
        """i64[B]: place of each text's first token."""
        return self._inside(self.starts)

    def last(self, real: Tensor | None = None) -> Tensor:
        """i64[B]: place of each text's last token, of those that are `real` (bool[T]) if any is, else its first."""
        if real is None:
            return self._inside(self.ends - 1)
        at = torch.arange(len(real), device=real.device)
        found = torch.where(self.members() & real, at, -1).amax(1)
        return torch.where(found < 0, self.first(), found)

    def _inside(self, place: Tensor) -> Tensor:
        return place.clamp(0, len(self.kept) - 1)


def pool(mode: str, x: Tensor, spans: Spans) -> Tensor:
    """f32[B, H] of [T, H]."""
    return _MODES[mode](x, spans)


def _sums(x: Tensor, weights: Tensor) -> Tensor:
    """Sums of tokens weighed by f32[B, T]: a product, whose order of additions is always the same."""
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
    """Token i of n weighs i + 1 (Muennighoff 2022, SGPT)."""
    at = torch.arange(len(x), device=x.device)
    weights = spans.members() * (at - spans.starts[:, None] + 1).float()
    return _sums(x, weights) / weights.sum(1, keepdim=True).clamp(min=1)


def _max(x: Tensor, spans: Spans) -> Tensor:
    at = torch.arange(len(x), device=x.device)
    owner = torch.searchsorted(spans.ends, at, right=True)  # B where a token is of no text
    owner = torch.where(spans.kept, owner, len(spans.ends))
    best = torch.full((len(spans.ends) + 1, x.shape[1]), float("-inf"), device=x.device)
    best = best.scatter_reduce(0, owner[:, None].expand(-1, x.shape[1]), x.float(), "amax")
    return best[:-1]


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
