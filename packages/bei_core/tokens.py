"""Texts to token ids, with the Rust `tokenizers` library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from bei_core.errors import CheckpointError, Empty, Tokenizer, Validation
from bei_core.tasks import Encoding, Pair, Templated, Text, Tokens, TruncationSide, num_characters

# Below this many characters a request is encoded where it stands: about 1 us a token, where a hop to another thread
# and back costs 50 us of processor time (docs/decisions/003-tokenize-in-place.md).
INLINE_CHARS = 4096

# One call into Rust at a time holds this much text, so that a huge request does not keep its neighbours waiting.
_CHUNK = 64

# No vocabulary has longer tokens (text-embeddings-inference has the same figure). Megabytes are cut before they are
# tokenized, which takes 100 bytes of memory a character.
_CHARS_PER_TOKEN = 250

# Pieces that the texts of one request may be split into, all together.
MAX_CHUNKS = 1024

ResultT = TypeVar("ResultT")

Indices: TypeAlias = npt.NDArray[np.intp]


class Chunked(NamedTuple):
    """Texts in pieces: piece i belongs to text owners[i], and those of a text are side by side."""

    tokens: list[Tokens]
    owners: Indices


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
        self._knows_more = self._tokenizer.get_vocab_size() > vocab_size  # ids that the model has no row for
        self._skips: dict[str, int] = {}  # of each prompt, the tokens that pooling leaves out
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="bei-tokenize")

    async def encode(self, texts: Sequence[Text], how: Encoding) -> list[Tokens]:
        """The tokens of each text, in order.

        Raises Empty for an empty text, Validation for one that is too long and may not be cut or for unknown token
        ids, Tokenizer where the tokenizer refuses.
        """
        size = sum(num_characters(text) or len(text) for text in texts)  # of token ids, how many
        return await self.apart(size, lambda: self.encode_now(texts, how))

    async def encode_chunks(self, texts: Sequence[Text], how: Encoding) -> Chunked:
        """The pieces of each text; raises as `encode` does, and Validation for more than MAX_CHUNKS of them."""
        size = sum(num_characters(text) or len(text) for text in texts)
        return await self.apart(size, lambda: self.split_now(texts, how))

    def split_now(self, texts: Sequence[Text], how: Encoding) -> Chunked:
        """`encode_chunks`, on the caller's thread."""
        if not texts:
            raise Empty("`inputs` cannot be empty", param="inputs")
        pieces = [self._pieces(text, how) for text in texts]
        counts = [len(each) for each in pieces]
        if sum(counts) > MAX_CHUNKS + len(texts):
            raise Validation(f"the texts make {sum(counts)} chunks; at most {MAX_CHUNKS} are taken", param="inputs")
        return Chunked([piece for each in pieces for piece in each], np.repeat(np.arange(len(texts)), counts))

    async def apart(self, size: int, work: Callable[[], ResultT]) -> ResultT:
        """What `work` returns, done here where its `size` in characters is small, else on the tokenizer's thread."""
        if size <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def encode_now(self, texts: Sequence[Text], how: Encoding) -> list[Tokens]:
        """`encode`, on the caller's thread."""
        if not texts:
            raise Empty("`inputs` cannot be empty", param="inputs")
        words = [text for text in texts if isinstance(text, str) or type(text) is Pair]
        if len(words) == len(texts):
            return self._encode_texts(words, how)
        return [self._encode_one(text, how) for text in texts]

    def spans(self, text: str, *, add_special_tokens: bool) -> list[tuple[int, str, bool, int | None, int | None]]:
        """(id, text, is special, start, stop) of each token; start and stop count characters, None for special ones."""
        try:
            (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
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

    def _encode_one(self, text: Text, how: Encoding) -> Tokens:
        if isinstance(text, str | Pair):
            return self._encode_texts([text], how)[0]
        return self._pieces(text, how)[0] if isinstance(text, Templated) else self._verbatim(text, how)

    def _pieces(self, text: Text, how: Encoding) -> list[Tokens]:
        """A text in as many pieces as it takes, or where it is not to be split the first of them."""
        if not isinstance(text, str | Pair | Templated):
            return self._slices(text, how)
        if not (all(text) if isinstance(text, Pair) else text[0] if isinstance(text, Templated) else text):
            raise Empty("`inputs` cannot hold an empty text", param="inputs")
        whole = text if isinstance(text, Templated) else self._prepared(text, how)
        encoding = self._encoded(whole.text if isinstance(whole, Templated) else whole)
        ids, type_ids = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
        if self._knows_more:
            self._check_ids(encoding.ids)
        inside = _own_tokens(encoding, text)
        room = min(self.max_seq_len - (len(ids) - len(inside)), how.chunk_tokens or len(ids))
        if len(inside) <= room:
            return [Tokens(ids, type_ids, self._skip(how))]
        if room < 1:
            raise Validation("what goes with the text leaves no room for it; shorten the query", param="inputs")
        if not how.chunk and how.chunk_tokens is None:
            self._refuse_too_long(len(ids), how)
        fixed = np.setdiff1d(np.arange(len(ids)), inside)
        kept = [np.sort(np.concatenate([fixed, window])) for window in _windows(inside, room, how)]
        return [Tokens(ids[each], type_ids[each], self._skip(how)) for each in kept]

    def _slices(self, ids: Sequence[int], how: Encoding) -> list[Tokens]:
        """Token ids that the caller made, in pieces."""
        if not how.chunk and how.chunk_tokens is None:
            return [self._verbatim(ids, how)]
        whole = self._verbatim_ids(ids)
        room = min(self.max_seq_len, how.chunk_tokens or len(whole))
        windows = _windows(np.arange(len(whole)), room, how)
        return [Tokens(whole[each], np.zeros(len(each), np.int32)) for each in windows]

    def _encoded(self, text: str | Pair) -> tokenizers.Encoding:
        """The encoding of one text, with offsets. Raises Tokenizer where the tokenizer refuses."""
        try:
            (encoding,) = self._tokenizer.encode_batch([text])
        except Exception as fault:  # the library raises bare Exception
            raise Tokenizer(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        return encoding

    def _skip(self, how: Encoding) -> int:
        """Tokens of the prompt that pooling leaves out, as sentence-transformers counts them.

        They are those of the prompt encoded alone, less the special one at its end.
        """
        if how.pool_prompt or not how.prompt:
            return 0
        if how.prompt not in self._skips:
            special = self._encoded(how.prompt).special_tokens_mask
            self._skips[how.prompt] = len(special) - (special[-1] if special else 0)
        return self._skips[how.prompt]

    def _encode_texts(self, texts: list[str | Pair], how: Encoding) -> list[Tokens]:
        if not all(all(text) if isinstance(text, Pair) else text for text in texts):
            raise Empty("`inputs` cannot hold an empty text", param="inputs")
        texts = [self._prepared(text, how) for text in texts]
        try:  # always by the batch: `encode` of one text keeps Python's lock while it runs
            encodings = [
                encoding
                for start in range(0, len(texts), _CHUNK)
                for encoding in self._tokenizer.encode_batch_fast(texts[start : start + _CHUNK])
            ]
        except Exception as fault:  # the library raises bare Exception
            raise Tokenizer(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        return [self._tokens(encoding, how) for encoding in encodings]

    def _prepared(self, text: str | Pair, how: Encoding) -> str | Pair:
        """A text with its prompt, less what is so far beyond the model's length that no token of it could stay."""
        if isinstance(text, Pair):
            return Pair(*(self._clipped(part, how) for part in text))
        return (how.prompt or "") + self._clipped(text, how)

    def _clipped(self, text: str, how: Encoding) -> str:
        limit = self.max_seq_len * _CHARS_PER_TOKEN * (MAX_CHUNKS if how.chunk else 1)
        if len(text) <= limit:
            return text
        self._refuse_too_long(f"{len(text)} characters", how)
        return text[:limit] if how.side is TruncationSide.RIGHT else text[-limit:]

    def _tokens(self, encoding: tokenizers.Encoding, how: Encoding) -> Tokens:
        ids = np.array(encoding.ids, np.int32)
        if not len(ids):
            raise Empty("the text has no tokens", param="inputs")
        if self._knows_more:
            self._check_ids(encoding.ids)
        type_ids = np.array(encoding.type_ids, np.int32)
        skip = min(self._skip(how), len(ids) - 1)
        if len(ids) <= self.max_seq_len:
            return Tokens(ids, type_ids, skip)
        self._refuse_too_long(len(ids), how)
        kept = _kept(encoding.sequence_ids, self.max_seq_len, how.side)
        return Tokens(ids[kept], type_ids[kept], min(skip, len(kept) - 1))

    def _verbatim(self, ids: Sequence[int], how: Encoding) -> Tokens:
        """Token ids that the caller made: used as they are, cut where that is allowed."""
        array = self._verbatim_ids(ids)
        if len(array) > self.max_seq_len:
            self._refuse_too_long(len(array), how)
            right = how.side is TruncationSide.RIGHT
            array = array[: self.max_seq_len] if right else array[-self.max_seq_len :]
        return Tokens(array, np.zeros_like(array))

    def _verbatim_ids(self, ids: Sequence[int]) -> npt.NDArray[np.int32]:
        """Ids that the model knows, at least one."""
        if not len(ids):
            raise Empty("`inputs` cannot hold an empty list of token ids", param="inputs")
        self._check_ids(ids)
        return np.array(ids, np.int32)

    def _check_ids(self, ids: Sequence[int]) -> None:
        worst = max(ids, default=0) if min(ids, default=0) >= 0 else min(ids)
        if not 0 <= worst < self.vocab_size:
            raise Validation(f"token id {worst} is not in the vocabulary (0 to {self.vocab_size - 1})", param="inputs")

    def _refuse_too_long(self, length: int | str, how: Encoding) -> None:
        if not how.truncate:
            raise Validation(
                f"`inputs` must have less than {self.max_seq_len} tokens. Given: {length}; "
                "shorten it or set `truncate` to true",
                param="inputs",
            )


def _kept(parts: Sequence[int | None], limit: int, side: TruncationSide) -> npt.NDArray[np.intp]:
    """Indices that stay when an encoding is cut to `limit` tokens: the special ones, and what fits of each text.

    `parts` says of each token whether it is the first text's (0), the second's (1), or special (None).
    """
    places = np.array([-1 if part is None else part for part in parts])
    special, first, second = (np.flatnonzero(places == part) for part in (-1, 0, 1))
    room = _longest_first(len(first), len(second), max(limit - len(special), 0))
    inside = [
        text[:size] if side is TruncationSide.RIGHT else text[len(text) - size :]
        for text, size in zip((first, second), room, strict=True)
    ]
    return np.sort(np.concatenate([special, *inside]))


def _own_tokens(encoding: tokenizers.Encoding, text: Text) -> Indices:
    """Indices of the tokens that may be left out: a text's own, a pair's second's, those of a prompt's document."""
    parts = np.array([-1 if part is None else part for part in encoding.sequence_ids])
    if isinstance(text, Templated):
        begin, end = (np.array(side) for side in zip(*encoding.offsets, strict=True))
        return np.flatnonzero((parts == 0) & (begin >= text.start) & (end <= text.stop) & (end > begin))
    return np.flatnonzero(parts == (1 if isinstance(text, Pair) else 0))


def _windows(inside: Indices, room: int, how: Encoding) -> list[Indices]:
    """The tokens in pieces of at most `room`; only the first, or the last where texts lose their beginning."""
    if how.chunk:
        return [inside[start : start + room] for start in range(0, len(inside), room)]
    return [inside[:room] if how.side is TruncationSide.RIGHT else inside[-room:]]


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens kept of two texts where only `room` fit: the longer one is cut, then both alike.

    `tokenizers`' LongestFirst (`utils/truncation.rs`), which transformers and TEI use.
    """
    if first + second <= room:
        return first, second
    short = min(first, second)
    if 2 * short > room:
        return (room // 2, room - room // 2) if first <= second else (room - room // 2, room // 2)
    return (short, room - short) if first <= second else (room - short, short)


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
