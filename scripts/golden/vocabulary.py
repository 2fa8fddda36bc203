"""Tokenizers made from the golden texts, in the shape of the ones that each architecture came with."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from scripts.golden.spec import TokenizerSpec, Vocab

# id -> token of the special tokens; `pad_id` swaps the padding token with whatever has that id.
SPECIAL: dict[Vocab, tuple[str, ...]] = {
    Vocab.WORDPIECE: ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "[unused2]"),
    Vocab.MPNET: ("<s>", "<pad>", "</s>", "[UNK]", "<mask>", "[unused0]"),
    Vocab.BYTE_BPE: ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "madeupword0"),
    Vocab.UNIGRAM: ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}
NAMES: dict[Vocab, dict[str, str]] = {
    Vocab.WORDPIECE: {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"},
    Vocab.MPNET: {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "[UNK]", "mask": "<mask>"},
    Vocab.BYTE_BPE: {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"},
    Vocab.UNIGRAM: {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"},
}
CLASSES = {
    Vocab.WORDPIECE: "BertTokenizer",
    Vocab.MPNET: "MPNetTokenizer",
    Vocab.BYTE_BPE: "RobertaTokenizer",
    Vocab.UNIGRAM: "XLMRobertaTokenizer",
}
MAX_CHARACTERS = 170  # a small vocabulary has to leave room for longer pieces
MAX_PIECE = 5  # characters


def specials(spec: TokenizerSpec) -> list[str]:
    """The special tokens in the order of their ids."""
    tokens = list(SPECIAL[spec.kind])
    pad = tokens.index(NAMES[spec.kind]["pad"])
    wanted = pad if spec.pad_id is None else spec.pad_id
    tokens[pad], tokens[wanted] = tokens[wanted], tokens[pad]
    return tokens


def train(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    """A tokenizer of exactly `spec.size` tokens, special ones first, with the post-processor of its kind."""
    makers = {Vocab.BYTE_BPE: _byte_bpe, Vocab.UNIGRAM: _unigram}
    tokenizer = makers.get(spec.kind, _wordpiece)(spec, texts)
    names = NAMES[spec.kind]
    # XLM-R's own files let the mask swallow the space before it, as MPNet's do.
    greedy = spec.kind in (Vocab.MPNET, Vocab.UNIGRAM)
    for role in ("cls", "pad", "sep", "unk", "mask"):
        tokenizer.add_special_tokens([AddedToken(names[role], lstrip=greedy and role == "mask", normalized=False)])
    tokenizer.post_processor = _post_processor(spec)
    if spec.baked_limits:
        tokenizer.enable_truncation(20)
        tokenizer.enable_padding(length=20, pad_id=tokenizer.token_to_id(names["pad"]), pad_token=names["pad"])
    if tokenizer.get_vocab_size() != spec.size:
        raise ValueError(f"the texts gave {tokenizer.get_vocab_size()} tokens, {spec.size} were asked for")
    return tokenizer


def tokenizer_config(spec: TokenizerSpec) -> dict[str, Any]:
    """tokenizer_config.json: it has to agree with tokenizer.json, since transformers 5 rebuilds from both."""
    names = NAMES[spec.kind]
    config: dict[str, Any] = {f"{role}_token": token for role, token in names.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast" if spec.nfkc else CLASSES[spec.kind]
    if spec.kind in (Vocab.WORDPIECE, Vocab.MPNET):
        config |= {"do_lower_case": spec.lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    else:
        config |= {"bos_token": names["cls"], "eos_token": names["sep"]}
    if spec.kind is Vocab.BYTE_BPE:
        config["add_prefix_space"] = spec.add_prefix_space
    if spec.model_max_length is not None:
        config["model_max_length"] = spec.model_max_length
    return config


def _wordpiece(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=spec.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first = specials(spec)
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
        special_tokens=specials(spec),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    if spec.nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    first = specials(spec)
    learned = _frequent_pieces(_words(tokenizer, texts), "", spec.size - len(first))
    total = sum(learned.values())
    # Rounded, so that no platform's logarithm can change the file.
    scores = [(piece, round(math.log(count / total), 4)) for piece, count in learned.items()]
    unk_id = first.index(NAMES[spec.kind]["unk"])
    tokenizer.model = models.Unigram([*((token, 0.0) for token in first), *scores], unk_id, byte_fallback=False)
    return tokenizer


def _words(tokenizer: Tokenizer, texts: list[str]) -> Counter[str]:
    """How often each pre-token occurs in the texts."""
    normalizer, pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    normalized = [text if normalizer is None else normalizer.normalize_str(text) for text in texts]
    return Counter(word for text in normalized for word, _ in pre_tokenizer.pre_tokenize_str(text))


def _frequent_pieces(words: Counter[str], mark: str, size: int) -> dict[str, int]:
    """`size` pieces with their counts: common characters, then the substrings that would save the most tokens.

    The library's trainers for WordPiece and Unigram break ties by the order of a hash map, so their files differ from
    run to run; this is as good for a test. `mark` goes before a piece that continues a word.
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


def _post_processor(spec: TokenizerSpec) -> processors.PostProcessor:
    names = NAMES[spec.kind]
    first = specials(spec)
    cls, sep = ((names[role], first.index(names[role])) for role in ("cls", "sep"))
    if spec.kind in (Vocab.BYTE_BPE, Vocab.MPNET):
        return processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=spec.add_prefix_space)
    if spec.kind is Vocab.UNIGRAM:
        pair = [cls[0], "$A", sep[0], sep[0], "$B", sep[0]]
        return processors.TemplateProcessing([cls[0], "$A", sep[0]], pair, [cls, sep])
    single = f"{cls[0]}:0 $A:0 {sep[0]}:0"
    return processors.TemplateProcessing(single, f"{single} $B:1 {sep[0]}:1", [cls, sep])
