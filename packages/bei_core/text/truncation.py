"""Which tokens of an encoding stay when it is too long for the model. Indices only; nothing here knows a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers

from bei_core.tasks import Pair, Templated, TruncationSide

Indices: TypeAlias = npt.NDArray[np.intp]


def truncate_longest_first(parts: Sequence[int | None], limit: int, side: TruncationSide) -> Indices:
    """Indices of the at most `limit` tokens that stay: all special ones, and of each text as many as fit.

    `parts` says of each token whether it belongs to the first text (0), to the second (1), or is special (None).
    """
    places = _part_numbers(parts)
    special, first, second = (np.flatnonzero(places == part) for part in (-1, 0, 1))
    lengths = _longest_first(len(first), len(second), max(limit - len(special), 0))
    inside = [
        text[:length] if side is TruncationSide.RIGHT else text[len(text) - length :]
        for text, length in zip((first, second), lengths, strict=True)
    ]
    return np.sort(np.concatenate([special, *inside]))


def document_tokens(encoding: tokenizers.Encoding, text: str | Pair | Templated) -> Indices:
    """Indices of the tokens that may be left out: those of a text, of a pair's second text, of a prompt's document."""
    parts = _part_numbers(encoding.sequence_ids)
    if not isinstance(text, Templated):
        return np.flatnonzero(parts == (1 if isinstance(text, Pair) else 0))
    begin, end = np.array(encoding.offsets).reshape(-1, 2).T
    lead = len(text.text[: text.start].rstrip())  # the token of a word often includes the space before it
    inside = (begin >= lead) & (begin < text.stop) & (end > text.start) & (end <= text.stop)
    return np.flatnonzero(inside & (parts == 0))


def num_skipped(kept: Indices, skip: int) -> int:
    """How many of the first `skip` tokens are among those kept; at most all but one, which is left to pool."""
    return min(int(np.searchsorted(kept, skip)), len(kept) - 1)


def _part_numbers(parts: Sequence[int | None]) -> Indices:
    return np.array([-1 if part is None else part for part in parts], np.intp)


def _longest_first(first: int, second: int, limit: int) -> tuple[int, int]:
    """How many tokens stay of two texts of which `limit` fit: the longer is cut to the shorter, then both alike.

    This is LongestFirst of `tokenizers` (`utils/truncation.rs`), which transformers and TEI use.
    """
    if first + second <= limit:
        return first, second
    short = min(first, second)
    if 2 * short > limit:
        return (limit // 2, limit - limit // 2) if first <= second else (limit - limit // 2, limit // 2)
    return (short, limit - short) if first <= second else (limit - short, short)
