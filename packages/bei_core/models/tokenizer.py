"""Opens the tokenizer of a model by its spec."""

from __future__ import annotations

from pathlib import Path

from bei_core.models.spec import ModelSpec
from bei_core.text.tokenizer import TextTokenizer


def open_model_tokenizer(path: Path, spec: ModelSpec, max_seq_len: int, *, num_workers: int = 1) -> TextTokenizer:
    """Returns the tokenizer in the file `path`. It truncates to `max_seq_len` tokens, or to fewer if the model does."""
    return TextTokenizer(
        path,
        max_seq_len=min(spec.max_seq_len, max_seq_len),
        vocab_size=spec.vocab_size,
        lower_case=spec.do_lower_case,
        num_workers=num_workers,
    )
