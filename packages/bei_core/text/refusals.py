"""Errors of the tokenizer that several of its methods raise."""

from __future__ import annotations

from collections.abc import Sequence

from bei_core.errors import EmptyInputError, ValidationError

MAX_CHUNKS = 1024  # how many chunks one request may have besides the first chunk of each text

_IDS_PER_CHECK = 65_536  # of a long list of ids, because `min` and `max` hold the GIL


def no_texts() -> EmptyInputError:
    """Returns the error for a request without texts."""
    return EmptyInputError("`inputs` cannot be empty", param="inputs")


def empty_text() -> EmptyInputError:
    """Returns the error for an empty text."""
    return EmptyInputError("`inputs` cannot hold an empty text", param="inputs")


def no_space() -> ValidationError:
    """Returns the error for a query or prompt after which no token of the text fits."""
    return ValidationError("the query or prompt leaves no tokens for the text; shorten the query", param="inputs")


def too_long(max_tokens: int, length: int | str) -> ValidationError:
    """Returns the error for an input of more than `max_tokens` tokens that may not be truncated.

    text-embeddings-inference says "less than" too, though an input may have exactly so many tokens. Its clients read
    this sentence.
    """
    message = f"`inputs` must have less than {max_tokens} tokens. Given: {length}; shorten it or set `truncate` to true"
    return ValidationError(message, param="inputs")


def too_many_chunks() -> ValidationError:
    """Returns the error for a request with more than MAX_CHUNKS further chunks."""
    limit = f"a request may have at most {MAX_CHUNKS} more chunks than texts"
    return ValidationError(f"the texts make too many chunks; {limit}", param="inputs")


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises ValidationError if an id is not in the vocabulary."""
    pieces = [ids[start : start + _IDS_PER_CHECK] for start in range(0, len(ids), _IDS_PER_CHECK)]
    least, most = min(map(min, pieces), default=0), max(map(max, pieces), default=0)
    worst = most if least >= 0 else least
    if not 0 <= worst < vocab_size:
        raise ValidationError(f"token id {worst} is not in the vocabulary (0 to {vocab_size - 1})", param="inputs")
