"""A model's `tokenizer.json`, as the Rust `tokenizers` library reads it."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from bei_core.errors import CheckpointError


def open_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json`. Raises CheckpointError if it is missing or malformed."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; save the model's fast tokenizer with "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as fault:  # the library raises bare Exception
        raise CheckpointError(
            f"{path} is not a tokenizer that `tokenizers` {tokenizers.__version__} reads: {fault}"
        ) from (fault)


def lowercase_first(tokenizer: tokenizers.Tokenizer) -> NormalizerSequence:
    """The tokenizer's normalizer with lower-casing before it, as sentence-transformers builds it."""
    present = tokenizer.normalizer
    return NormalizerSequence([Lowercase()] if present is None else [Lowercase(), present])
