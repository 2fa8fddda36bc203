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

from bei_core.errors import CheckpointError, EmptyInputError, TokenizerError, ValidationError
from bei_core.tasks import Encoding, Pair, Templated, Text, Tokens, TruncationSide, num_characters

# Below this many characters a request is encoded where it stands: about 1 us a token, where a hop to another thread
# and back costs 50 us of processor time (docs/decisions/003-tokenize-in-place.md).
INLINE_CHARS = 4096

# One call into Rust at a time holds this much text, so that a huge request does not keep its neighbours waiting.
_CHUNK = 64

# No vocabulary has longer tokens (text-embeddings-inference has the same figure). Megabytes are cut before they are
# tokenized, which takes 100 bytes of memory a character.
_CHARS_PER_TOKEN = 250

# A text that is to be split cannot be cut before; a megabyte of it takes two seconds and 200 MB.
_SPLIT_CHARS = 1_000_000

# Pieces that the texts of one request may be split into, all together and beyond the one that each text is anyway.
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
        truncation = self._tokenizer.truncation or {}
        self._side = TruncationSide(str(truncation.get("direction", "right")).lower())  # where a request names none
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # cut here instead: per request, at either end
        if lower_case and "Lowercase" not in repr(self._tokenizer.normalizer):
            self._tokenizer.normalizer = _lowercase_first(self._tokenizer)
        self.max_seq_len = max_seq_len
        self.vocab_size = vocab_size
        self._knows_more = self._tokenizer.get_vocab_size() > vocab_size  # ids that the model has no row for
        self._skips: dict[str, int] = {}  # of each prompt, the tokens that pooling leaves out
        added = self._tokenizer.get_added_tokens_decoder().items()
        self._special_ids = {id_ for id_, token in added if token.special}
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="bei-tokenize")

    async def encode(self, texts: Sequence[Text], how: Encoding) -> list[Tokens]:
        """The tokens of each text, in order.

        Raises EmptyInputError for an empty text, ValidationError for one that is too long and may not be cut or for
        unknown token ids, TokenizerError where the tokenizer refuses.
        """
        size = sum(num_characters(text) or len(text) for text in texts)  # of token ids, how many
        return await self.apart(size, lambda: self.encode_now(texts, how))

    async def encode_chunks(self, texts: Sequence[Text], how: Encoding) -> Chunked:
        """The pieces of each text; raises as `encode` does, and ValidationError for more than MAX_CHUNKS of them."""
        size = sum(num_characters(text) or len(text) for text in texts)
        return await self.apart(size, lambda: self.split_now(texts, how))

    def split_now(self, texts: Sequence[Text], how: Encoding) -> Chunked:
        """`encode_chunks`, on the caller's thread."""
        if not texts:
            raise EmptyInputError("`inputs` cannot be empty", param="inputs")
        pieces: list[Tokens] = []
        counts: list[int] = []
        for text in texts:
            found = self._pieces(text, how)
            pieces += found
            counts.append(len(found))
            if len(pieces) - len(counts) > MAX_CHUNKS:  # before the rest is encoded
                raise _too_many()
        return Chunked(pieces, np.repeat(np.arange(len(texts)), counts))

    async def apart(self, size: int, work: Callable[[], ResultT]) -> ResultT:
        """What `work` returns, done here where its `size` in characters is small, else on the tokenizer's thread."""
        if size <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def encode_now(self, texts: Sequence[Text], how: Encoding) -> list[Tokens]:
        """`encode`, on the caller's thread."""
        if not texts:
            raise EmptyInputError("`inputs` cannot be empty", param="inputs")
        words = [text for text in texts if isinstance(text, str) or type(text) is Pair]
        if len(words) == len(texts):
            return self._encode_texts(words, how)
        return [self._encode_one(text, how) for text in texts]

    def spans(self, text: str, *, add_special_tokens: bool) -> list[tuple[int, str, bool, int | None, int | None]]:
        """(id, text, is special, start, stop) of each token; start and stop count characters, None for special ones."""
        try:
            (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        except Exception as fault:
            raise TokenizerError(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [
            (id_, token, True, None, None) if special else (id_, text[start:stop], False, start, stop)
            for id_, token, special, (start, stop) in rows
        ]

    def pieces(self, text: str, how: Encoding) -> list[tuple[int, str, bool, int, int]]:
        """(id, token as the vocabulary spells it, is special, start, stop) of each token that `encode` keeps of a text.

        Start and stop count characters; what is no part of the text, a prompt's tokens too, is special and at 0.
        """
        clipped, prompt = self._clipped(text, how), len(how.prompt or "")
        shift = (len(text) - len(clipped) if self._side_of(how) is TruncationSide.LEFT else 0) - prompt
        encoding = self._encoded((how.prompt or "") + clipped)
        found = []
        for place in _kept(encoding.sequence_ids, min(self.max_seq_len, len(encoding.ids)), self._side_of(how)):
            id_, (start, stop) = encoding.ids[place], encoding.offsets[place]
            special = bool(encoding.special_tokens_mask[place]) or 0 < prompt >= stop
            span = (0, 0) if special else (max(start, prompt) + shift, stop + shift)
            found.append((id_, self._tokenizer.id_to_token(id_), special, *span))
        return found

    def join(self, tokens: Sequence[str]) -> str:
        """The text of tokens as the vocabulary spells them."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    @property
    def marks_subwords(self) -> bool:
        """Whether a token that goes on with a word says so by a prefix, as WordPiece's do."""
        return bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))

    @property
    def unknown_id(self) -> int | None:
        """The id of whatever has no token of its own."""
        names = (getattr(self._tokenizer.model, "unk_token", None), "<unk>", "[UNK]")
        return next((id_ for name in names if name and (id_ := self._tokenizer.token_to_id(name)) is not None), None)

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
        return self._pieces(text, how)[0]

    def _pieces(self, text: Text, how: Encoding) -> list[Tokens]:
        """A text in as many pieces as it takes, or where it is not to be split the first of them."""
        if not isinstance(text, str | Pair | Templated):
            return self._slices(text, how)
        whole = self._marked(text, how)
        encoding = self._encoded(whole.text if isinstance(whole, Templated) else whole)
        ids, type_ids = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
        if not len(ids):
            raise EmptyInputError("the text has no tokens", param="inputs")
        if self._knows_more:
            self._check_ids(encoding.ids)
        inside = _own_tokens(encoding, whole)
        num_fixed = len(ids) - len(inside)
        fixed = np.setdiff1d(np.arange(len(ids)), inside)
        skip = self._skip(how) if isinstance(text, str) else 0
        kept = [np.sort(np.concatenate([fixed, window])) for window in self._windows(inside, num_fixed, how)]
        return [Tokens(ids[each], type_ids[each], _skipped(each, skip)) for each in kept]

    def _marked(self, text: str | Pair | Templated, how: Encoding) -> str | Pair | Templated:
        """A text that is not empty, of a size that can be tokenized, with what stays in each of its pieces marked."""
        if not (
            text.start < text.stop if isinstance(text, Templated) else all(text) if isinstance(text, Pair) else text
        ):
            raise EmptyInputError("`inputs` cannot hold an empty text", param="inputs")
        if isinstance(text, str) and how.prompt:
            text = Templated(how.prompt + text, len(how.prompt), len(how.prompt) + len(text))
        if not isinstance(text, Templated):
            return self._prepared(text, how)
        head, tail = text.text[: text.start], text.text[text.stop :]
        if len(head) + len(tail) > self.max_seq_len * _CHARS_PER_TOKEN:
            raise _no_room()
        document = self._clipped(text.text[text.start : text.stop], how)
        return Templated(head + document + tail, len(head), len(head) + len(document))

    def _windows(self, inside: Indices, num_fixed: int, how: Encoding) -> list[Indices]:
        """Tokens in pieces that fit beside the fixed ones; unsplit, only the first, or the last of what is cut left.

        `truncate: false` allows the cut to `chunk_tokens`, which was asked for, and none beyond.
        """
        room = self.max_seq_len - num_fixed
        wanted = min(len(inside), how.chunk_tokens or len(inside))
        if room < min(1, len(inside)):
            raise _no_room()
        if how.chunk:
            size = max(min(wanted, room), 1)
            if len(inside) > (MAX_CHUNKS + 1) * size:
                raise _too_many()
            return [inside[start : start + size] for start in range(0, max(len(inside), 1), size)]
        if wanted > room:
            self._refuse_too_long(num_fixed + wanted, how)
        size = min(wanted, room)
        return [inside[:size] if self._side_of(how) is TruncationSide.RIGHT else inside[len(inside) - size :]]

    def _slices(self, ids: Sequence[int], how: Encoding) -> list[Tokens]:
        """Token ids that the caller made: used as they are, split or cut where that is asked for or allowed."""
        if not len(ids):
            raise EmptyInputError("`inputs` cannot hold an empty list of token ids", param="inputs")
        self._check_ids(ids)
        whole = np.array(ids, np.int32)
        windows = self._windows(np.arange(len(whole)), 0, how)
        return [Tokens(whole[each], np.zeros(len(each), np.int32)) for each in windows]

    def _encoded(self, text: str | Pair) -> tokenizers.Encoding:
        """The encoding of one text, with offsets. Raises TokenizerError where the tokenizer refuses."""
        try:
            (encoding,) = self._tokenizer.encode_batch([text])
        except Exception as fault:  # the library raises bare Exception
            raise TokenizerError(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        return encoding

    def _skip(self, how: Encoding) -> int:
        """Tokens of the prompt that pooling leaves out, as sentence-transformers counts them.

        They are those of the prompt encoded alone, less the special one at its end.
        """
        if how.pool_prompt or not how.prompt:
            return 0
        if how.prompt not in self._skips:
            encoding = self._encoded(how.prompt)
            last = encoding.ids[-1:]
            ends = bool(last) and (encoding.special_tokens_mask[-1] == 1 or last[0] in self._special_ids)
            self._skips[how.prompt] = len(encoding) - ends
        return self._skips[how.prompt]

    def _encode_texts(self, texts: list[str | Pair], how: Encoding) -> list[Tokens]:
        if not all(all(text) if isinstance(text, Pair) else text for text in texts):
            raise EmptyInputError("`inputs` cannot hold an empty text", param="inputs")
        skip = 0 if how.pool_prompt else self._skip(how)
        texts = [self._prepared(text, how) for text in texts]
        try:  # always by the batch: `encode` of one text keeps Python's lock while it runs
            encodings = [
                encoding
                for start in range(0, len(texts), _CHUNK)
                for encoding in self._tokenizer.encode_batch_fast(texts[start : start + _CHUNK])
            ]
        except Exception as fault:  # the library raises bare Exception
            raise TokenizerError(f"the tokenizer refused the text: {fault}", param="inputs") from fault
        if not skip:
            return [self._tokens(encoding, 0, how) for encoding in encodings]
        skips = (0 if isinstance(text, Pair) else skip for text in texts)  # a pair has no prompt
        return [self._tokens(*each, how) for each in zip(encodings, skips, strict=True)]

    def _prepared(self, text: str | Pair, how: Encoding) -> str | Pair:
        """A text with its prompt, less what is so far beyond the model's length that no token of it could stay."""
        if isinstance(text, Pair):
            return Pair(*(self._clipped(part, how) for part in text))
        return (how.prompt or "") + self._clipped(text, how)

    def _side_of(self, how: Encoding) -> TruncationSide:
        """The end at which a text that is too long is cut."""
        return how.side or self._side

    def _clipped(self, text: str, how: Encoding) -> str:
        limit = self.max_seq_len * _CHARS_PER_TOKEN
        if len(text) <= limit:
            return text
        if how.chunk:
            if len(text) > _SPLIT_CHARS:
                message = f"a text to be split has at most {_SPLIT_CHARS} characters, this one {len(text)}"
                raise ValidationError(message, param="inputs")
            return text
        if how.chunk_tokens is None:
            self._refuse_too_long(f"{len(text)} characters", how)
        return text[:limit] if self._side_of(how) is TruncationSide.RIGHT else text[-limit:]

    def _tokens(self, encoding: tokenizers.Encoding, skip: int, how: Encoding) -> Tokens:
        ids = np.array(encoding.ids, np.int32)
        if not len(ids):
            raise EmptyInputError("the text has no tokens", param="inputs")
        if self._knows_more:
            self._check_ids(encoding.ids)
        type_ids = np.array(encoding.type_ids, np.int32)
        if len(ids) <= self.max_seq_len:
            return Tokens(ids, type_ids, min(skip, len(ids) - 1) if skip else 0)
        self._refuse_too_long(len(ids), how)
        kept = _kept(encoding.sequence_ids, self.max_seq_len, self._side_of(how))
        return Tokens(ids[kept], type_ids[kept], _skipped(kept, skip))

    def _check_ids(self, ids: Sequence[int]) -> None:
        worst = max(ids, default=0) if min(ids, default=0) >= 0 else min(ids)
        if not 0 <= worst < self.vocab_size:
            raise ValidationError(
                f"token id {worst} is not in the vocabulary (0 to {self.vocab_size - 1})", param="inputs"
            )

    def _refuse_too_long(self, length: int | str, how: Encoding) -> None:
        if not how.truncate:
            raise ValidationError(
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


def _own_tokens(encoding: tokenizers.Encoding, text: str | Pair | Templated) -> Indices:
    """Indices of the tokens that may be left out: a text's own, a pair's second's, those of a prompt's document."""
    parts = np.array([-1 if part is None else part for part in encoding.sequence_ids])
    if not isinstance(text, Templated):
        return np.flatnonzero(parts == (1 if isinstance(text, Pair) else 0))
    begin, end = np.array(encoding.offsets).reshape(-1, 2).T
    lead = len(text.text[: text.start].rstrip())  # a word's token often has the space before it
    inside = (begin >= lead) & (begin < text.stop) & (end > text.start) & (end <= text.stop)
    return np.flatnonzero(inside & (parts == 0))


def _skipped(kept: Indices, skip: int) -> int:
    """How many of the first `skip` tokens are among those kept, leaving one to pool."""
    return min(int(np.searchsorted(kept, skip)), len(kept) - 1)


def _no_room() -> ValidationError:
    return ValidationError("what goes with the text leaves no room for it; shorten the query", param="inputs")


def _too_many() -> ValidationError:
    return ValidationError(
        f"the texts make too many chunks; at most {MAX_CHUNKS} more than texts are taken", param="inputs"
    )


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
