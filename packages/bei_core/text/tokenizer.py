"""`TextTokenizer`: makes token ids from texts with the Rust library `tokenizers`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from bei_core.errors import EmptyInputError, ValidationError
from bei_core.tasks import EncodeOptions, Pair, Templated, Text, Tokens, TokenSpan, TruncationSide, num_characters
from bei_core.text.files import lowercase_first, open_tokenizer
from bei_core.text.library import calls, encode
from bei_core.text.refusals import MAX_CHUNKS, check_ids, empty_text, no_space, no_texts, too_long, too_many_chunks
from bei_core.text.truncation import Indices, IntegerT, document_tokens, num_skipped, truncate_longest_first
from bei_core.text.words import LONG_TOKEN, LONG_WORD, Frame, IdsOfWords, Words
from bei_core.text.workers import Tokenized, Workers

# A request with at most INLINE_CHARS characters is tokenized on the event loop, until those of one turn have taken
# _INLINE_S. The change to a thread and back would cost 50 us for each (docs/decisions/003-tokenize-in-place.md).
INLINE_CHARS = 4096
_INLINE_S = 0.006  # the most seconds that INLINE_CHARS characters take

# The most characters that a token has in any vocabulary (as in text-embeddings-inference). A text with more characters
# per token of the model's limit is cut before it is tokenized.
_CHARS_PER_TOKEN = 250

# If a long text will be truncated at its end, only its start is tokenized first: this many characters per token of the
# model's limit. If fewer than _SETTLING_WORDS words lie between the last token to keep and this cut, the cut could have
# changed the tokens to keep, and the text is tokenized again without it.
_LIKELY_CHARS_PER_TOKEN = 16
_SETTLING_WORDS = 32

_MAX_CHUNKED_CHARS = 1_000_000  # of a text to chunk, which is tokenized as a whole; takes 2 s and 200 MB of memory


class TextTokenizer:
    """The tokenizer of one model. All methods are safe to call from several threads."""

    def __init__(
        self, path: Path, *, max_seq_len: int, vocab_size: int, lower_case: bool = False, num_workers: int = 1
    ) -> None:
        self._tokenizer = open_tokenizer(path)
        truncation = self._tokenizer.truncation or {}
        self._side = TruncationSide(str(truncation.get("direction", "right")).lower())  # if the request names none
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # `_truncated` does it, because each request chooses the side
        if lower_case:
            self._tokenizer.normalizer = lowercase_first(self._tokenizer)
        self.max_seq_len = max_seq_len
        self.vocab_size = vocab_size
        self._max_chars, self._likely_chars = max_seq_len * _CHARS_PER_TOKEN, max_seq_len * _LIKELY_CHARS_PER_TOKEN
        self._zeros = np.zeros(max_seq_len, np.int32)  # made once: it releases the GIL
        self._inline_s = 0.0  # seconds of tokenizing in this turn of the event loop
        # Whether the vocabulary has ids for which the model has no embedding.
        self._has_unknown_ids = max(self._tokenizer.get_vocab().values(), default=0) >= vocab_size
        self._words = None if self._has_unknown_ids else Words.of(self._tokenizer)
        self._skips: dict[tuple[str, bool], int] = {}  # by prompt and `add_special_tokens`
        added = self._tokenizer.get_added_tokens_decoder().items()
        self._special_ids = {id_ for id_, token in added if token.special}
        self._workers = Workers(num_workers)

    def start(self) -> None:
        """Starts all threads, also the library's, which never tries again if it cannot start them with a first text."""
        self._workers.start(lambda: self.encode_now(["a"], EncodeOptions()))

    async def tokenize(self, texts: Sequence[Text], options: EncodeOptions, deadline: float | None = None) -> Tokenized:
        """Returns the tokens of each text, truncated or chunked.

        Raises the errors of `encode_now` and `chunk_now`, and DeadlineExceededError at `deadline`, in seconds on the
        clock of time.monotonic, if the texts are tokenized on a thread.
        """
        size = sum(num_characters(text) if isinstance(text, Pair | Templated) else len(text) for text in texts)
        chunks = options.chunk or options.chunk_tokens is not None
        if self._inline_s + _INLINE_S * size / INLINE_CHARS > _INLINE_S:
            encode = self.chunk_now if chunks else lambda part, options: (self.encode_now(part, options), None)
            return await self._workers.tokenize(encode, texts, options, deadline)
        loop = asyncio.get_running_loop()
        loop.call_soon(setattr, self, "_inline_s", 0.0)  # in the next turn of the loop
        began = time.perf_counter()
        try:
            return Tokenized(*self.chunk_now(texts, options) if chunks else (self.encode_now(texts, options), None))
        finally:
            self._inline_s += time.perf_counter() - began

    def encode_now(self, texts: Sequence[Text], options: EncodeOptions) -> list[Tokens]:
        """Returns the tokens of each text, truncated if it is too long. Runs on the caller's thread.

        Raises EmptyInputError for an empty text, ValidationError for unknown token ids and for a text that is too long
        if `truncate` is false, TokenizerError if the library fails.
        """
        if not texts:
            raise no_texts()
        plain = [text for text in texts if isinstance(text, str) or type(text) is Pair]
        if len(plain) < len(texts):  # token ids and filled templates are encoded one by one
            alone = (self.encode_now if isinstance(text, str | Pair) else self._encode_special for text in texts)
            return [function([text], options)[0] for function, text in zip(alone, texts, strict=True)]
        if not all(any(text) if isinstance(text, Pair) else text for text in plain):
            raise empty_text()
        if self._words is None or options.spans or (options.prompt and not options.pool_prompt):
            return self._from_library(plain, options)
        groups = [plain] if len(plain) == 1 else calls(plain)  # the words of one are in memory at a time
        found = [tokens for group in groups for tokens in self._from_words(self._words, group, options)]
        left = [text for text, tokens in zip(plain, found, strict=True) if tokens is None]
        others = iter(self._from_library(left, options) if left else ())
        return [next(others) if tokens is None else tokens for tokens in found]

    def _from_words(self, words: Words, texts: Sequence[str | Pair], options: EncodeOptions) -> list[Tokens | None]:
        """Returns the tokens of each text by its words; None for a text that the library has to encode as a whole."""
        limit, prompt = min(self.max_seq_len, options.max_tokens or self.max_seq_len), options.prompt or ""
        split = list[Sequence[Sequence[str]]]()  # the words of the one or two sides of each text
        for text in texts:
            sides = (prompt + text,) if isinstance(text, str) else text
            num_chars = sum(map(len, sides))
            parts = [side.split(" ") for side in sides] if num_chars <= limit * LONG_TOKEN else ()
            num_words = sum(map(len, parts))
            split.append(parts if num_words <= limit and num_chars <= num_words * LONG_WORD else ())
        needed, known = set[str]().union(*(part for parts in split for part in parts)), words.known
        ids = known if known.keys() >= needed else words.learn(needed)
        frames = [words.frames[num, options.add_special_tokens] for num in (1, 2)]
        return [_joined(parts, ids, frames[len(parts) - 1], limit, self._zeros) if parts else None for parts in split]

    def _from_library(self, plain: list[str | Pair], options: EncodeOptions) -> list[Tokens]:
        """Returns the tokens of each text, which the library encodes as a whole; raises the errors of `encode_now`."""
        prompt, longest = options.prompt or "", self._likely_chars
        prepared = [
            prompt + text if isinstance(text, str) and len(text) <= longest else self._likely(text, options)
            for text in plain
        ]
        skip = 0 if options.pool_prompt else self._skip(options)
        with_words = options.spans or any(not isinstance(text, Pair) and len(text) > longest for text in plain)
        encodings = zip(self._encode(prepared, options, with_spans=with_words), plain, prepared, strict=True)
        return [
            self._settled(encoding, text, skip, options)
            if isinstance(text, str) and len(text) > longest >= len(part) - len(prompt)  # `_likely` has cut it
            else self._truncated(encoding, text, skip, options)
            for encoding, text, part in encodings
        ]

    def chunk_now(self, texts: Sequence[Text], options: EncodeOptions) -> tuple[list[Tokens], Indices]:
        """Returns the chunks of all texts, and for each chunk the index of its text. Runs on the caller's thread.

        Raises the errors of `encode_now`, and ValidationError for too many chunks.
        """
        if not texts:
            raise no_texts()
        chunks: list[Tokens] = []
        counts: list[int] = []
        for text in texts:
            found = self._chunks(text, options)
            chunks += found
            counts.append(len(found))
            if len(chunks) - len(counts) > MAX_CHUNKS:  # checked before the next text is encoded
                raise too_many_chunks()
        return chunks, np.repeat(np.arange(len(texts)), counts)

    def spans(self, text: str, *, add_special_tokens: bool) -> Iterator[tuple[int, str, bool, int | None, int | None]]:
        """Yields (id, text, is special, start, stop) of each token; start and stop are characters, None if special."""
        (encoding,) = self._encode([text], EncodeOptions(add_special_tokens=add_special_tokens), with_spans=True)
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, strict=True)
        for index, (id_, token, special) in enumerate(rows):
            if special:
                yield id_, token, True, None, None
            else:  # one token after the other: `encoding.offsets` holds the GIL for 70 ms if a text is long
                start, stop = encoding.token_to_chars(index) or (0, 0)
                yield id_, text[start:stop], False, start, stop

    def names(self, ids: Sequence[int]) -> list[str]:
        """Returns the token of each id, as the vocabulary spells it."""
        return [str(self._tokenizer.id_to_token(id_)) for id_ in ids]

    def join(self, tokens: Sequence[str]) -> str:
        """Returns the text of tokens, which are spelled as in the vocabulary."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    @property
    def marks_subwords(self) -> bool:
        """Whether tokens that continue a word have a prefix, as in WordPiece."""
        return bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown token; None if there is none."""
        names = (getattr(self._tokenizer.model, "unk_token", None), "<unk>", "[UNK]")
        return next((id_ for name in names if name and (id_ := self._tokenizer.token_to_id(name)) is not None), None)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids. Raises ValidationError for unknown ids."""
        check_ids(ids, self.vocab_size)
        (text,) = self._tokenizer.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
        return str(text)

    def close(self) -> None:
        """Ends the worker threads."""
        self._workers.close()

    def _encode(self, texts: list[str | Pair], options: EncodeOptions, *, with_spans: bool) -> Iterator[Encoding]:
        """Yields the encoding of each text by the library, see `library.encode`."""
        return encode(self._tokenizer, texts, add_special_tokens=options.add_special_tokens, with_spans=with_spans)

    def _likely(self, text: str | Pair, options: EncodeOptions) -> str | Pair:
        """Returns the part of a long text to encode first: its start if its end may be truncated, else all of it."""
        may_cut = options.truncate and self._side_of(options) is TruncationSide.RIGHT
        if isinstance(text, Pair) or not may_cut:
            return self._prepared(text, options)
        return (options.prompt or "") + text[: self._likely_chars]

    def _settled(self, encoding: Encoding, text: str, skip: int, options: EncodeOptions) -> Tokens:
        """Returns the truncated tokens of a long text; `encoding` is the encoding of its start only.

        Encodes the text again, without the cut of `_likely`, if that cut could have changed the tokens to keep.
        """
        time.sleep(0)  # lets other threads take the GIL; the moments in which NumPy releases it are too short
        words = [word for word in encoding.word_ids if word is not None]
        if len(words) <= self.max_seq_len or words[self.max_seq_len] + _SETTLING_WORDS > words[-1]:
            (encoding,) = self._encode([self._prepared(text, options)], options, with_spans=options.spans)
        return self._truncated(encoding, text, skip, options)

    def _truncated(self, encoding: Encoding, text: str | Pair, skip: int, options: EncodeOptions) -> Tokens:
        """Returns the tokens of a text or a pair, truncated if it is too long; raises the errors of `encode_now`."""
        ids = encoding.ids
        if not ids or self._has_unknown_ids:
            self._check_encoded(ids)
        if isinstance(text, Pair):
            skip = 0  # a pair has no prompt
        limit = self._limit_of(options)
        if len(ids) > limit:
            self._refuse_too_long(len(ids), options)
            kept = truncate_longest_first(encoding.sequence_ids, limit, self._side_of(options))
        elif skip or options.spans:
            kept = np.arange(len(ids))
        else:
            return Tokens(np.array(ids, np.int32), np.array(encoding.type_ids, np.int32))
        return self._selected(encoding, [kept], skip, text, options)[0]

    def _selected(
        self, encoding: Encoding, windows: Iterable[Indices], skip: int, text: Text, options: EncodeOptions
    ) -> list[Tokens]:
        """Returns the tokens at the indices of each window; pooling leaves out those with an index below `skip`."""
        ids, type_ids = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)

        def tokens(kept: Indices) -> Tokens:
            spans = self._spans(encoding, kept, text, options) if options.spans and isinstance(text, str) else ()
            return Tokens(ids[kept], type_ids[kept], num_skipped(kept, skip), spans)

        return list(map(tokens, windows))

    def _spans(self, encoding: Encoding, kept: Indices, text: str, options: EncodeOptions) -> Sequence[TokenSpan]:
        """Returns the span of each token at `kept`; start and end count characters of `text`, without its prompt."""
        prompt, shift = len(options.prompt or ""), 0
        if self._side_of(options) is TruncationSide.LEFT and not options.chunk:
            shift = max(len(text) - self._max_chars, 0)  # the number of characters that `_cut` removed
        ids, tokens = encoding.ids, encoding.tokens
        offsets, mask = encoding.offsets, encoding.special_tokens_mask
        found = []
        for index in kept.tolist():
            start, end = offsets[index]
            special = bool(mask[index]) or 0 < prompt >= end
            place = (0, 0) if special else (max(start, prompt) - prompt + shift, end - prompt + shift)
            found.append(TokenSpan(ids[index], tokens[index], special, *place))
        return found

    def _encode_special(self, texts: Sequence[Text], options: EncodeOptions) -> list[Tokens]:
        """Returns the tokens of one input that is a filled template or token ids, as a list with one element."""
        return self._chunks(texts[0], options)[:1]

    def _chunks(self, text: Text, options: EncodeOptions) -> list[Tokens]:
        """Returns a text's chunks, each with the prompt or query; without `chunk`, the truncated text as one chunk."""
        if not isinstance(text, str | Pair | Templated):
            return self._chunks_of_ids(text, options)
        if isinstance(text, Templated) and not text.add_special_tokens:
            options = replace(options, add_special_tokens=False)
        whole = self._with_document(text, options)
        (encoding,) = self._encode([whole.text if isinstance(whole, Templated) else whole], options, with_spans=True)
        if options.chunk and len(encoding) > (MAX_CHUNKS + 1) * self.max_seq_len:
            raise too_many_chunks()
        self._check_encoded(encoding.ids)
        document = document_tokens(encoding, whole)
        fixed = np.delete(np.arange(len(encoding)), document)
        skip = self._skip(options) if isinstance(text, str) else 0
        kept = (np.sort(np.concatenate([fixed, window])) for window in self._windows(document, len(fixed), options))
        return self._selected(encoding, kept, skip, text, options)

    def _with_document(self, text: str | Pair | Templated, options: EncodeOptions) -> str | Pair | Templated:
        """Returns the text cut by `_cut`; a text with a prompt becomes a Templated, with the text as its document.

        Raises EmptyInputError for an empty text or pair, ValidationError if the prompt or query alone is too long.
        """
        if not (any(text) if isinstance(text, Pair) else text):
            raise empty_text()
        if isinstance(text, str) and options.prompt:
            text = Templated(options.prompt + text, len(options.prompt), len(options.prompt) + len(text))
        if not isinstance(text, Templated):
            return self._prepared(text, options)
        head, tail = text.text[: text.start], text.text[text.stop :]
        if len(head) + len(tail) > self._max_chars:
            raise no_space()
        document = self._cut(text.text[text.start : text.stop], options)
        return Templated(head + document + tail, len(head), len(head) + len(document))

    def _windows(
        self, document: npt.NDArray[IntegerT], num_fixed: int, options: EncodeOptions
    ) -> list[npt.NDArray[IntegerT]]:
        """Returns the document's tokens in windows that fit beside `num_fixed` others; without `chunk`, one window.

        With `truncate: false`, the window is cut to `chunk_tokens` only. Raises ValidationError if it does not fit.
        """
        space = self._limit_of(options) - num_fixed
        wanted = min(len(document), options.chunk_tokens or len(document))
        if space < min(1, len(document)):
            raise no_space()
        if options.chunk:
            size = max(min(wanted, space), 1)
            if len(document) > (MAX_CHUNKS + 1) * size:
                raise too_many_chunks()
            return [document[start : start + size] for start in range(0, max(len(document), 1), size)]
        if wanted > space:
            self._refuse_too_long(num_fixed + wanted, options)
        size = min(wanted, space)
        return [document[:size] if self._side_of(options) is TruncationSide.RIGHT else document[len(document) - size :]]

    def _chunks_of_ids(self, ids: Sequence[int], options: EncodeOptions) -> list[Tokens]:
        """Returns the chunks of token ids, which are used unchanged."""
        if not len(ids):
            raise EmptyInputError("`inputs` cannot hold an empty list of token ids", param="inputs")
        check_ids(ids, self.vocab_size)
        windows = self._windows(np.array(ids, np.int32), 0, options)
        return [Tokens(each, self._zeros[: len(each)]) for each in windows]

    def _skip(self, options: EncodeOptions) -> int:
        """Returns how many tokens of the prompt pooling leaves out, counted as in sentence-transformers.

        sentence-transformers encodes the prompt alone, and does not count a special token at its end.
        """
        if options.pool_prompt or not options.prompt:
            return 0
        key = options.prompt, options.add_special_tokens
        if key not in self._skips:
            (encoding,) = self._encode([options.prompt], options, with_spans=True)
            last = encoding.ids[-1:]
            ends = bool(last) and (encoding.special_tokens_mask[-1] == 1 or last[0] in self._special_ids)
            self._skips[key] = len(encoding) - ends
        return self._skips[key]

    def _prepared(self, text: str | Pair, options: EncodeOptions) -> str | Pair:
        """Returns the text with the prompt before it, or the pair, ready to encode; `_cut` cuts each text."""
        if isinstance(text, Pair):
            return Pair(self._cut(text.first, options), self._cut(text.second, options))
        return (options.prompt or "") + self._cut(text, options)

    def _side_of(self, options: EncodeOptions) -> TruncationSide:
        """Returns the end at which a text that is too long loses tokens."""
        return options.side or self._side

    def _cut(self, text: str, options: EncodeOptions) -> str:
        """Returns the text without the characters so far from the kept end that truncation would drop their tokens."""
        if options.chunk and len(text) > _MAX_CHUNKED_CHARS:
            message = f"only a text of at most {_MAX_CHUNKED_CHARS} characters can be chunked, not {len(text)}"
            raise ValidationError(message, param="inputs")
        if options.chunk or len(text) <= self._max_chars:
            return text
        if options.chunk_tokens is None:
            self._refuse_too_long(f"{len(text)} characters", options)
        return text[: self._max_chars] if self._side_of(options) is TruncationSide.RIGHT else text[-self._max_chars :]

    def _check_encoded(self, ids: Sequence[int]) -> None:
        if not ids:
            raise EmptyInputError("the text has no tokens", param="inputs")
        if self._has_unknown_ids:
            check_ids(ids, self.vocab_size)

    def _limit_of(self, options: EncodeOptions) -> int:
        """Returns the most tokens of an input: the model's limit, or the request's own if it is lower."""
        return min(self.max_seq_len, options.max_tokens or self.max_seq_len)

    def _refuse_too_long(self, length: int | str, options: EncodeOptions) -> None:
        if not options.truncate:
            raise too_long(self._limit_of(options), length)


def _joined(
    sides: Sequence[Sequence[str]], known: IdsOfWords, frame: Frame, limit: int, zeros: npt.NDArray[np.int32]
) -> Tokens | None:
    """Returns the tokens of the words of a text or a pair; None if there are none, or more than `limit`."""
    first = b"".join([frame.before, *map(known.__getitem__, sides[0]), frame.between])
    second = b"".join([*map(known.__getitem__, sides[1]), frame.after]) if len(sides) == 2 else frame.after
    ids = np.frombuffer(first + second, np.int32)
    if not 0 < len(ids) <= limit:
        return None
    if not frame.second_type:
        return Tokens(ids, zeros[: len(ids)])
    type_ids = np.zeros(len(ids), np.int32)
    type_ids[len(first) // ids.itemsize :] = frame.second_type
    return Tokens(ids, type_ids)
