"""`Words`: remembers the token ids of words, for tokenizers that give a word the same ids in every text."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence, Set
from itertools import islice
from typing import NamedTuple, TypeAlias

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from bei_core.text.library import encode

# A word with its ids takes about 150 bytes. When there are so many, all are forgotten: frequent ones return at once.
_NUM_WORDS = 16_384
_WORD_CHARS = 32  # longer ones are not remembered
_WORDS_PER_TEXT = 64

# Punctuation, which is always a token of its own, and which no other character becomes when it is normalized. The first
# of these that is in the vocabulary separates new words.
MARKS = "|~^,."

# A text with more characters per token of the limit, or per word, is not for `Words`: it will be truncated, or has no
# spaces, such as Chinese.
LONG_TOKEN, LONG_WORD = 6, 16

# The ids of each word as the bytes of i32[n]: to join ten of them takes 0.3 us, as lists 2 us.
IdsOfWords: TypeAlias = Mapping[str, bytes]


class Frame(NamedTuple):
    """The special tokens of a text or a pair, each as the bytes of i32[n]: before, between its two texts, and after."""

    before: bytes
    between: bytes
    after: bytes
    second_type: int  # the token type of the second text and of what comes after it; all others have 0


class Words:
    """The ids of words that were tokenized before. A word is what stands between two spaces (U+0020) of a text.

    BERT's tokenizers give a word the same ids in every text: they normalize character by character, split at spaces and
    punctuation, and look each piece up for itself. All methods are safe to call from several threads.
    """

    def __init__(
        self, tokenizer: Tokenizer, frames: Mapping[tuple[int, bool], Frame], mark: str, model: WordPiece | None
    ) -> None:
        """`model` is the tokenizer's, if it alone gives plain words the same ids as the tokenizer; else None."""
        self._tokenizer, self._mark, self._mark_id = tokenizer, mark, tokenizer.token_to_id(mark)
        self._model, self._lowercases = model, bool(tokenizer.normalizer.lowercase)
        self.frames = frames  # by the number of texts (1, or 2 for a pair) and whether there are special tokens
        self.known: dict[str, bytes] = {}  # replaced, never cleared

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words | None:
        """Returns None for a tokenizer of another kind, and for one with an added token that spaces are part of.

        The tokenizer neither truncates nor pads.
        """
        kinds = (tokenizer.model, WordPiece), (tokenizer.normalizer, BertNormalizer)
        if not all(isinstance(*each) for each in (*kinds, (tokenizer.pre_tokenizer, BertPreTokenizer))):
            return None
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        forms = [*added, *map(tokenizer.normalizer.normalize_str, added)]
        if any(" " in form for form in forms):
            return None
        keys = [(count, special) for count in (1, 2) for special in (True, False)]
        frames = {key: frame for key in keys if (frame := _frame(tokenizer, key[0], add_special_tokens=key[1]))}
        mark = next((mark for mark in MARKS if tokenizer.token_to_id(mark) is not None), None)
        fails = tokenizer.token_to_id(tokenizer.model.unk_token) is None  # on words for which it has no ids
        model = None if fails or any(map(_is_plain, forms)) else tokenizer.model
        return cls(tokenizer, frames, mark, model) if mark and len(frames) == len(keys) else None

    def learn(self, words: Set[str]) -> IdsOfWords:
        """Returns the ids of words, and maybe of others. The library tokenizes those that are not known.

        Raises TokenizerError if the library fails.
        """
        known = self.known  # another thread may replace it
        found = self._tokenized(set(words).difference(known))
        kept = islice(((word, each) for word, each in found.items() if len(word) <= _WORD_CHARS), _NUM_WORDS)
        short = dict(kept)
        if len(known) + len(short) > _NUM_WORDS:
            self.known = short
        else:
            known.update(short)
            if len(short) == len(found):
                return known
        return {word: found[word] if word in found else known[word] for word in words}

    def _tokenized(self, words: Collection[str]) -> dict[str, bytes]:
        """Returns the ids of words. The model alone takes 1 us for a plain word.

        The library takes 5 us for a text of one word and 3 us for a word of a long text. So it gets many words in a
        text, with a mark between them.
        """
        model, found = self._model, dict[str, bytes]()
        if model is not None:
            for word in filter(_is_plain, words):
                tokens = model.tokenize(word.lower() if self._lowercases else word)
                found[word] = _bytes_of([token.id for token in tokens])
        left = [word for word in words if word not in found]
        groups = [[word] for word in left if self._mark in word]
        others = [word for word in left if self._mark not in word]
        groups += [others[start : start + _WORDS_PER_TEXT] for start in range(0, len(others), _WORDS_PER_TEXT)]
        texts = [f" {self._mark} ".join(group) for group in groups]
        for group, encoding in zip(groups, encode(self._tokenizer, texts, add_special_tokens=False), strict=True):
            ids = [encoding.ids] if len(group) == 1 else _split(encoding.ids, self._mark_id)
            if len(ids) != len(group):  # a word has become the mark, which none is known to do
                ids = [each.ids for each in encode(self._tokenizer, group, add_special_tokens=False)]
            found.update(zip(group, map(_bytes_of, ids), strict=True))
        return found


def _is_plain(word: str) -> bool:
    """Whether a word has only ASCII letters and digits: BERT's tokenizers do not split it before the model does."""
    return word.isascii() and word.isalnum() and len(word) <= _WORD_CHARS


def _bytes_of(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def _split(ids: Sequence[int], mark: int | None) -> list[list[int]]:
    """Returns what is before, between and after the marks."""
    found = [list[int]()]
    for id_ in ids:
        if id_ == mark:
            found.append([])
        else:
            found[-1].append(id_)
    return found


def _frame(tokenizer: Tokenizer, num_texts: int, *, add_special_tokens: bool) -> Frame | None:
    """Returns the special tokens of one text or a pair; None if their token types are not those of a `Frame`."""
    pair = "b" if num_texts == 2 else None
    encoding = tokenizer.encode("a", pair, add_special_tokens=add_special_tokens)
    ids, types, owners = encoding.ids, encoding.type_ids, encoding.sequence_ids
    if not {0, num_texts - 1} <= set(owners):
        return None
    start, stop, end = owners.index(0), _end(owners, 0), _end(owners, num_texts - 1)
    second = owners.index(1) if pair else len(ids)
    second_type = types[second] if pair else 0
    if types != [0] * second + [second_type] * (len(ids) - second):
        return None
    before, between, after = ids[:start], ids[stop:second] if pair else [], ids[end:]
    return Frame(_bytes_of(before), _bytes_of(between), _bytes_of(after), second_type)


def _end(owners: Sequence[int | None], owner: int) -> int:
    """Returns the index after the last token of a text."""
    return max(index for index, each in enumerate(owners) if each == owner) + 1
