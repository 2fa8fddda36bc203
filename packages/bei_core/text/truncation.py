"""Truncation: chooses the tokens that stay if an encoding is too long for the model. It needs no vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers

from bei_core.tasks import Pair, Templated, TruncationSide

Indices: TypeAlias = npt.NDArray[np.intp]
IntegerT = TypeVar("IntegerT", bound=np.signedinteger[Any])


def truncate_longest_first(parts: Sequence[int | None], limit: int, side: TruncationSide) -> Indices:
    """Returns the ascending indices of the tokens that stay: all special tokens, and as many of each text as fit.

    At most `limit` tokens stay, unless there are more special ones. `parts` has a value per token: 0 for the first
    text, 1 for the second, None for a special token. `side` is the end at which a text loses tokens.
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
    """Returns the indices of the tokens that may be cut: of a text, a pair's second text or a prompt's document."""
    parts = _part_numbers(encoding.sequence_ids)
    if not isinstance(text, Templated):
        return np.flatnonzero(parts == (1 if isinstance(text, Pair) else 0))
    # One token after the other: `encoding.offsets` holds the GIL for 100 ms if a text has 200,000 tokens.
    offsets = (encoding.token_to_chars(index) or (0, 0) for index in range(len(encoding)))
    begin, end = np.fromiter(offsets, np.dtype((np.intp, 2)), len(encoding)).T
    lead = len(text.text[: text.start].rstrip())  # the token of a word often includes the space before it
    inside = (begin >= lead) & (begin < text.stop) & (end > text.start) & (end <= text.stop)
    return np.flatnonzero(inside & (parts == 0))


def num_skipped(kept: Indices, skip: int) -> int:
    """Returns how many of the first `skip` tokens are in `kept`; at least one kept token is left for the pooling."""
    return min(int(np.searchsorted(kept, skip)), len(kept) - 1)


def _part_numbers(parts: Sequence[int | None]) -> Indices:
    """Returns the parts as integers, with -1 for None."""
    return np.fromiter((-1 if part is None else part for part in parts), np.intp, len(parts))


def _longest_first(first: int, second: int, limit: int) -> tuple[int, int]:
    """Returns how many tokens stay of two texts with `first` and `second` tokens, of which `limit` fit.

    The longer text is cut first; if it has become as short as the other one, both lose the same number. Source:
    LongestFirst in `utils/truncation.rs` of `tokenizers`, which transformers and TEI use.
    """
    if first + second <= limit:
        return first, second
    short = min(first, second)
    if 2 * short > limit:
        return (limit // 2, limit - limit // 2) if first <= second else (limit - limit // 2, limit // 2)
    return (short, limit - short) if first <= second else (limit - short, short)
