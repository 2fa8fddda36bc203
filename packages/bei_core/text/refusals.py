"""Errors of the tokenizer that several of its methods raise."""

from __future__ import annotations

from bei_core.errors import EmptyInputError, ValidationError

MAX_CHUNKS = 1024  # how many chunks one request may have besides the first chunk of each text


def no_texts() -> EmptyInputError:
    """Returns the error for a request without texts."""
    return EmptyInputError("`inputs` cannot be empty", param="inputs")


def empty_text() -> EmptyInputError:
    """Returns the error for an empty text."""
    return EmptyInputError("`inputs` cannot hold an empty text", param="inputs")


def no_space() -> ValidationError:
    """Returns the error for a query or prompt after which no token of the text fits."""
    return ValidationError("the query or prompt leaves no tokens for the text; shorten the query", param="inputs")


def too_many_chunks() -> ValidationError:
    """Returns the error for a request with more than MAX_CHUNKS further chunks."""
    limit = f"a request may have at most {MAX_CHUNKS} more chunks than texts"
    return ValidationError(f"the texts make too many chunks; {limit}", param="inputs")
