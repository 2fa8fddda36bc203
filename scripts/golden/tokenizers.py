"""Tokenizers learned from the golden texts, in the form that each kind of model is published with.

`tokenizers.json` says what each file of `tests/data/tokenizers` is.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECS = Path(__file__).with_name("tokenizers.json")
# The special tokens in the order of their ids: before all other tokens, but after them for kinds that split by WORDS.
SPECIALS = {
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "[unused2]"),
    "mpnet": ("<s>", "<pad>", "</s>", "[UNK]", "<mask>", "[unused0]"),  # WordPiece between <s> and </s>
    "byte-bpe": ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "madeupword0"),  # RoBERTa
    "unigram": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),  # XLM-R
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "mistral": ("<unk>", "<s>", "</s>"),  # also Llama 2
    "gemma": ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
}
# The tokens before and after a text, and those for padding, for an unknown word, and for a masked word.
ENCODERS = {
    "wordpiece": ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
    "mpnet": ("<s>", "</s>", "<pad>", "[UNK]", "<mask>"),
    "byte-bpe": ("<s>", "</s>", "<pad>", "<unk>", "<mask>"),
    "unigram": ("<s>", "</s>", "<pad>", "<unk>", "<mask>"),
}
BOS = {"llama3": "<|begin_of_text|>", "mistral": "<s>", "gemma": "<bos>"}
EOS = {"llama3": "<|end_of_text|>", "qwen": "<|endoftext|>", "mistral": "</s>", "gemma": "<eos>"}
# The pattern in published tokenizer.json files, which differ in how many digits are one word.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"llama3": "{1,3}", "qwen": ""}
SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
MAX_CHARACTERS = 170  # of a WordPiece or Unigram vocabulary, which needs space for longer pieces
MAX_PIECE = 5  # characters
NUM_CHARACTERS = 70  # that a vocabulary with byte fallback has as tokens
REPEATS = 1000  # of a word that has to become one token


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer of `size` tokens, special and added ones included."""

    kind: str
    size: int
    pad_id: int | None = None  # None: where the published tokenizers have it
    lowercase: bool = True  # WordPiece
    add_prefix_space: bool = False  # RoBERTa
    nfkc: bool = False  # XLM-R
    baked_limits: bool = False  # truncation and padding inside tokenizer.json, which an engine has to override
    bos: bool = True  # decoders: whether such a token comes before each text
    eos: bool = False  # decoders: whether such a token comes after each text
    words: tuple[str, ...] = ()  # words that must be one token each
    added: tuple[str, ...] = ()  # tokens after the special ones, without a meaning for the tokenizer
    also: str = ""  # a further text to learn from


def write_all(folder: Path, texts: list[str]) -> None:
    """Writes the file of every tokenizer, with the same content in every run."""
    folder.mkdir(exist_ok=True)
    for name, spec in json.loads(SPECS.read_text(encoding="utf-8")).items():
        tokenizer = train(TokenizerSpec(**spec), texts)
        (folder / f"{name}.json").write_text(tokenizer.to_str(), encoding="utf-8")


def train(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    """Returns the tokenizer, with its special tokens. Raises ValueError if the texts give fewer tokens than `size`."""
    corpus = [*texts, spec.also] if spec.also else texts
    tokenizer = _encoder(spec, corpus) if spec.kind in ENCODERS else _decoder(spec, corpus)
    if tokenizer.get_vocab_size() != spec.size:
        raise ValueError(f"the texts gave {tokenizer.get_vocab_size()} tokens, {spec.size} were asked for")
    return tokenizer


def _encoder(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    makers = {"byte-bpe": _byte_bpe, "unigram": _unigram}
    tokenizer = makers.get(spec.kind, _wordpiece)(spec, texts)
    cls, sep, pad, unk, mask = ENCODERS[spec.kind]
    # In XLM-R's and MPNet's own files the mask includes the space before it.
    lstrip = spec.kind in ("mpnet", "unigram")
    for token in (cls, pad, sep, unk, mask):
        tokenizer.add_special_tokens([AddedToken(token, lstrip=lstrip and token == mask, normalized=False)])
    tokenizer.post_processor = _pair_processor(spec)
    if spec.baked_limits:
        tokenizer.enable_truncation(20)
        tokenizer.enable_padding(length=20, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer


def _specials(spec: TokenizerSpec) -> list[str]:
    """Returns the special tokens of an encoder in the order of their ids; `pad_id` swaps two of them."""
    tokens = list(SPECIALS[spec.kind])
    pad = tokens.index(ENCODERS[spec.kind][2])
    wanted = pad if spec.pad_id is None else spec.pad_id
    tokens[pad], tokens[wanted] = tokens[wanted], tokens[pad]
    return tokens


def _wordpiece(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=spec.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first = _specials(spec)
    learned = _frequent_pieces(_words(tokenizer, texts), "##", spec.size - len(first))
    vocab = {token: index for index, token in enumerate([*first, *learned])}
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]")
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_bpe(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spec.add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.size,
        special_tokens=_specials(spec),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    if spec.nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    first = _specials(spec)
    learned = _frequent_pieces(_words(tokenizer, texts), "", spec.size - len(first))
    total = sum(learned.values())
    # Rounded, so that the file does not depend on a platform's logarithm.
    scores = [(piece, round(math.log(count / total), 4)) for piece, count in learned.items()]
    unk_id = first.index("<unk>")
    tokenizer.model = models.Unigram([*((token, 0.0) for token in first), *scores], unk_id, byte_fallback=False)
    return tokenizer


def _words(tokenizer: Tokenizer, texts: list[str]) -> Counter[str]:
    """Returns how often each pre-token occurs in the texts."""
    normalizer, pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    normalized = [text if normalizer is None else normalizer.normalize_str(text) for text in texts]
    return Counter(word for text in normalized for word, _ in pre_tokenizer.pre_tokenize_str(text))


def _frequent_pieces(words: Counter[str], mark: str, size: int) -> dict[str, int]:
    """Returns `size` pieces with their counts: common characters, then substrings that save the most tokens.

    `mark` comes before a piece that continues a word. The library's trainers for WordPiece and Unigram decide between
    equal pieces by the order of a hash map, so their files differ from run to run.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + MAX_PIECE, len(word)) + 1):
                counts[(mark if start else "") + word[start:end]] += count
    ranked = sorted(counts, key=lambda piece: (-counts[piece] * (len(piece.removeprefix(mark)) - 1), piece))
    single = [piece for piece in ranked if len(piece.removeprefix(mark)) == 1]
    chars = sorted(single, key=lambda piece: (-counts[piece], piece))[:MAX_CHARACTERS]
    longer = [piece for piece in ranked if len(piece.removeprefix(mark)) > 1][: size - len(chars)]
    return {piece: counts[piece] for piece in (*chars, *longer)}


def _pair_processor(spec: TokenizerSpec) -> processors.PostProcessor:
    """Returns the post-processor that adds an encoder's special tokens to a text or a pair."""
    first = _specials(spec)
    cls, sep = ((token, first.index(token)) for token in ENCODERS[spec.kind][:2])
    if spec.kind in ("byte-bpe", "mpnet"):
        return processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=spec.add_prefix_space)
    if spec.kind == "unigram":
        pair = [cls[0], "$A", sep[0], sep[0], "$B", sep[0]]
        return processors.TemplateProcessing([cls[0], "$A", sep[0]], pair, [cls, sep])
    single = f"{cls[0]}:0 $A:0 {sep[0]}:0"
    return processors.TemplateProcessing(single, f"{single} $B:1 {sep[0]}:1", [cls, sep])


def _decoder(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    is_byte_level = spec.kind in DIGITS
    tokenizer = (_byte_level if is_byte_level else _byte_fallback)(spec, texts)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS[spec.kind]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in spec.added])
    template = _template(spec, tokenizer)
    if is_byte_level:
        byte_level = processors.ByteLevel(trim_offsets=False)
        template = processors.Sequence([byte_level, template]) if spec.bos or spec.eos else byte_level
    tokenizer.post_processor = template
    return tokenizer


def _byte_level(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    normalizer = normalizers.NFC() if spec.kind == "qwen" else None
    pattern = Regex(WORDS.replace("DIGITS", DIGITS[spec.kind]))
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    splitter = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = spec.size - len(SPECIALS[spec.kind]) - len(spec.added)
    pieces, merges = _learn([*texts, *[*spec.words] * REPEATS], normalizer, splitter, alphabet, size)
    vocab = {piece: position for position, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=spec.kind == "llama3"))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    return tokenizer


def _byte_fallback(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    is_mistral = spec.kind == "mistral"
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    if is_mistral:
        spaces.insert(0, normalizers.Prepend(SPACE))
    normalizer = normalizers.Sequence(spaces) if is_mistral else spaces[0]
    # Texts are split into words only for learning. So the finished tokenizer has no merge across words.
    splitter = pre_tokenizers.Split(SPACE, behavior="merged_with_next")
    counts = Counter(normalizer.normalize_str(" ".join(texts)))
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[:NUM_CHARACTERS]
    first = [*SPECIALS[spec.kind], *BYTES]
    size = spec.size - len(first) - len(spec.added)
    pieces, merges = _learn(texts, normalizer, splitter, sorted(alphabet), size)
    vocab = {piece: position for position, piece in enumerate([*first, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if is_mistral:
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _learn(
    texts: list[str],
    normalizer: normalizers.Normalizer | None,
    splitter: pre_tokenizers.PreTokenizer,
    alphabet: list[str],
    size: int,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns `size` pieces in the order of their ids, and the merges that make them."""
    learner = Tokenizer(models.BPE())
    if normalizer:
        learner.normalizer = normalizer
    learner.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=lambda piece: model["vocab"][piece])
    return pieces, [(left, right) for left, right in model["merges"]]


def _template(spec: TokenizerSpec, tokenizer: Tokenizer) -> processors.PostProcessor:
    """Returns the post-processor that adds a decoder's special tokens to a text or a pair."""
    before, after = ([BOS[spec.kind]] if spec.bos else []), ([EOS[spec.kind]] if spec.eos else [])
    single = [*before, "$A", *after]
    pair = [*single, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    named = [(token, tokenizer.token_to_id(token)) for token in (*before, *after)]
    return processors.TemplateProcessing(single, pair, named)
