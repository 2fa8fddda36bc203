"""Bin packing: puts sequences of tokens into rows with little space left over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# With this many keys for each token, attention costs as much as all other work (measured on MiniLM).
_ATTENTION_COST_LENGTH = 768


def cost_of(num_rows: float, row_length: int, num_outside: int = 0) -> float:
    """Returns the work of packed rows, as a number of tokens without attention.

    `num_outside` is the number of tokens of other rows that each row attends to.
    """
    return num_rows * row_length * (1 + (row_length + num_outside) / _ATTENTION_COST_LENGTH)


def best_fit(items: Iterable[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Returns rows of at most `size` tokens, each a list of items: every item is in the fullest row with space for it.

    `lengths` has the number of tokens of each item, at most `size`. If the longest item comes first, there are at most
    3/2 of the fewest possible rows (Simchi-Levi 1994), and about 11/9 if there are many (Johnson 1973).
    """
    rows: list[list[int]] = []
    with_space: list[list[int]] = [[] for _ in range(size + 1)]  # row numbers, by the row's free tokens
    spaces = 0  # bit n is set if `with_space[n]` is not empty
    for item in items:
        length = lengths[item]
        enough = spaces >> length << length
        if enough:
            space = (enough & -enough).bit_length() - 1  # the lowest bit
            row = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
            rows[row].append(item)
        else:
            space, row = size, len(rows)
            rows.append([item])
        if space > length:
            with_space[space - length].append(row)
            spaces |= 1 << space - length
    return rows
