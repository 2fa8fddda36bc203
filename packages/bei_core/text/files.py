"""Opens a `tokenizer.json` with the Rust library `tokenizers`."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers.normalizers import Lowercase, Normalizer
from tokenizers.normalizers import Sequence as NormalizerSequence

from bei_core.errors import CheckpointError


def open_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer in a `tokenizer.json`. Raises CheckpointError if the file is missing or malformed."""
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


def lowercase_first(tokenizer: tokenizers.Tokenizer) -> Normalizer:
    """Returns the tokenizer's normalizer, with lower-casing before it unless it does that, as sentence-transformers."""
    present: Normalizer | None = tokenizer.normalizer
    if present is not None and (getattr(present, "lowercase", False) or "Lowercase" in repr(present)):
        return present
    return NormalizerSequence([Lowercase()] if present is None else [Lowercase(), present])
