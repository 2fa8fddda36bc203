"""Encodes texts with the Rust library `tokenizers`, so that other threads are not delayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Encoding, Tokenizer

from bei_core.errors import TokenizerError
from bei_core.tasks import Pair, num_characters

# Limits of one call into Rust, so that a huge request does not delay the others; a token takes 100 bytes in the call.
_TEXTS_PER_CALL = 64
_CHARS_PER_CALL = 262_144


def encode(
    tokenizer: Tokenizer, texts: Sequence[str | Pair], *, add_special_tokens: bool, with_spans: bool = False
) -> Iterator[Encoding]:
    """Yields the encoding of each text, with offsets if `with_spans`. Raises TokenizerError if the library fails.

    Encodings are large, so only those of one call into Rust are in memory at a time. Even a single text uses the batch
    functions, because `Tokenizer.encode` holds Python's global lock (GIL) while it runs.
    """
    encode_batch = tokenizer.encode_batch if with_spans else tokenizer.encode_batch_fast
    for group in calls(texts):
        try:
            encodings = encode_batch(group, add_special_tokens=add_special_tokens)
        except BaseException as fault:  # the library raises bare Exception, and a panic in Rust is not an Exception
            if isinstance(fault, KeyboardInterrupt | SystemExit):
                raise
            raise TokenizerError(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        encodings.reverse()
        while encodings:  # freed one by one: to free 64 of 4,000 tokens at once holds the GIL for 20 ms
            yield encodings.pop()


def calls(texts: Sequence[str | Pair]) -> Iterator[list[str | Pair]]:
    """Yields the texts in groups; each group is for one call into Rust."""
    group, size = list[str | Pair](), 0
    for text in texts:
        length = len(text) if isinstance(text, str) else num_characters(text)
        if group and (len(group) == _TEXTS_PER_CALL or size + length > _CHARS_PER_CALL):
            yield group
            group, size = [], 0
        group.append(text)
        size += length
    yield group
