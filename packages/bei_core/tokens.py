"""Texts to token ids, with the Rust `tokenizers` library."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from bei_core.errors import CheckpointError, Empty, Tokenizer, Validation
from bei_core.tasks import Encoding, Text, Tokens, TruncationSide

# Below this many characters a request is encoded where it stands: about 1 us a token, where a hop to another thread
# and back costs 50 us of processor time (docs/decisions/003-tokenize-in-place.md).
INLINE_CHARS = 4096

# One call into Rust at a time holds this much text, so that a huge request does not keep its neighbours waiting.
_CHUNK = 64


class TextTokenizer:
    """The tokenizer of one model. Its calls may come from any thread."""

    def __init__(
        self, path: Path, *, max_seq_len: int, vocab_size: int, lower_case: bool = False, num_workers: int = 1
    ) -> None:
        self._tokenizer = _open(path)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # cut here instead: per request, at either end
        if lower_case and "Lowercase" not in repr(self._tokenizer.normalizer):
            self._tokenizer.normalizer = _lowercase_first(self._tokenizer)
        self.max_seq_len = max_seq_len
        self.vocab_size = vocab_size
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="bei-tokenize")

    async def encode(self, texts: Sequence[Text], how: Encoding) -> list[Tokens]:
        """The tokens of each text, in order.

        Raises Empty for an empty text, Validation for one that is too long and may not be cut or for unknown token
        ids, Tokenizer where the tokenizer refuses.
        """
        if sum(map(len, texts)) <= INLINE_CHARS:
            return self.encode_now(texts, how)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.encode_now, texts, how)

    def encode_now(self, texts: Sequence[Text], how: Encoding) -> list[Tokens]:
        """`encode`, on the caller's thread."""
        if not texts:
            raise Empty("`inputs` cannot be empty", param="inputs")
        if all(isinstance(text, str) for text in texts):
            return self._encode_texts([str(text) for text in texts], how)
        return [
            self._encode_texts([text], how)[0] if isinstance(text, str) else self._verbatim(text, how) for text in texts
        ]

    def spans(self, text: str, *, add_special_tokens: bool) -> list[tuple[int, str, bool, int | None, int | None]]:
        """(id, text, is special, start, stop) of each token; start and stop count characters, None for special ones."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception as fault:
            raise Tokenizer(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [
            (id_, token, True, None, None) if special else (id_, text[start:stop], False, start, stop)
            for id_, token, special, (start, stop) in rows
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        self._check_ids(ids)
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def close(self) -> None:
        """Ends the worker threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode_texts(self, texts: list[str], how: Encoding) -> list[Tokens]:
        if not all(texts):
            raise Empty("`inputs` cannot hold an empty text", param="inputs")
        if how.prompt:
            texts = [how.prompt + text for text in texts]
        try:
            if len(texts) == 1:
                encodings = [self._tokenizer.encode(texts[0])]
            else:
                encodings = [
                    encoding
                    for start in range(0, len(texts), _CHUNK)
                    for encoding in self._tokenizer.encode_batch_fast(texts[start : start + _CHUNK])
                ]
        except Exception as fault:  # the library raises bare Exception
            raise Tokenizer(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        return [self._tokens(encoding, how) for encoding in encodings]

    def _tokens(self, encoding: tokenizers.Encoding, how: Encoding) -> Tokens:
        ids = np.array(encoding.ids, np.int32)
        if not len(ids):
            raise Empty("the text has no tokens", param="inputs")
        type_ids = np.array(encoding.type_ids, np.int32)
        if len(ids) <= self.max_seq_len:
            return Tokens(ids, type_ids)
        kept = self._kept(np.array(encoding.special_tokens_mask, bool), how)
        return Tokens(ids[kept], type_ids[kept])

    def _kept(self, special: npt.NDArray[np.bool_], how: Encoding) -> npt.NDArray[np.intp]:
        """Indices that stay when a text is cut to `max_seq_len`: the special tokens at both ends, and what fits."""
        self._refuse_too_long(len(special), how)
        inner = np.flatnonzero(~special)
        head, tail = int(inner[0]), len(special) - 1 - int(inner[-1])
        room = max(self.max_seq_len - head - tail, 0)
        inside = inner[:room] if how.side is TruncationSide.RIGHT else inner[len(inner) - room :]
        return np.concatenate([np.arange(head), inside, np.arange(len(special) - tail, len(special))])

    def _verbatim(self, ids: Sequence[int], how: Encoding) -> Tokens:
        """Token ids that the caller made: used as they are, cut where that is allowed."""
        if not len(ids):
            raise Empty("`inputs` cannot hold an empty list of token ids", param="inputs")
        self._check_ids(ids)
        array = np.array(ids, np.int32)
        if len(array) > self.max_seq_len:
            self._refuse_too_long(len(array), how)
            right = how.side is TruncationSide.RIGHT
            array = array[: self.max_seq_len] if right else array[-self.max_seq_len :]
        return Tokens(array, np.zeros_like(array))

    def _check_ids(self, ids: Sequence[int]) -> None:
        worst = max(ids, default=0) if min(ids, default=0) >= 0 else min(ids)
        if not 0 <= worst < self.vocab_size:
            raise Validation(f"token id {worst} is not in the vocabulary (0 to {self.vocab_size - 1})", param="inputs")

    def _refuse_too_long(self, length: int, how: Encoding) -> None:
        if not how.truncate:
            raise Validation(
                f"`inputs` must have less than {self.max_seq_len} tokens. Given: {length}; "
                "shorten it or set `truncate` to true",
                param="inputs",
            )


def _open(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json`. Raises CheckpointError where it is missing or malformed."""
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


def _lowercase_first(tokenizer: tokenizers.Tokenizer) -> NormalizerSequence:
    """The tokenizer's normalizer with lower-casing before it, as sentence-transformers builds it."""
    present = tokenizer.normalizer
    return NormalizerSequence([Lowercase()] if present is None else [Lowercase(), present])
