"""What the audits of golden decoders have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

MAX_BYTES = 130_000  # of a case
VISIBLE = 1e-2  # what a mistake has to change at least, where f32 keeps to 1e-4

Rows: TypeAlias = npt.NDArray[np.float32]  # [N, D], vectors or logits
Ids: TypeAlias = npt.NDArray[np.int32]


class Encoded(Protocol):
    """Token ids end to end."""

    @property
    def input_ids(self) -> Ids:
        """[T]."""

    @property
    def cu_seqlens(self) -> Ids:
        """[N + 1]."""


def check_size(folder: Path) -> int:
    """Bytes in the folder. Raises if they are too many for a repository."""
    if (size := sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())) > MAX_BYTES:
        raise AssertionError(f"{folder.name}: {size} bytes")
    return size


def check_ids(folder: Path, max_seq_length: int, texts: list[str], expected: Encoded) -> None:
    """Raises unless tokenizer.json alone, given the length, makes the expected ids of whole texts."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_seq_length)
    for row, text in enumerate(texts):
        start, end = expected.cu_seqlens[row : row + 2]
        if tokenizer.encode(text).ids != expected.input_ids[start:end].tolist():
            raise AssertionError(f"{folder.name}: transformers and tokenizer.json differ on {text!r}")


def difference(actual: Rows, expected: Rows) -> float:
    """The largest difference of a number, in units of the expected ones' usual size where that is above 1."""
    unit = max(1.0, float(np.sqrt((expected.astype(np.float64) ** 2).mean())))
    return float(np.abs(actual - expected).max()) / unit


def require_different(name: str, actual: Rows, expected: Rows) -> float:
    """By how much the rows of a spoilt model differ. Raises if that is not far more than f32 explains."""
    if (found := difference(actual, expected)) < VISIBLE:
        raise AssertionError(f"{name} would pass with a difference of {found:.1e}")
    return found
