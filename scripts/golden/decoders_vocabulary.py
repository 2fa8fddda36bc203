"""Tokenizers in the shape that decoders are published with, made from the golden texts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from scripts.golden.spec import TokenizerSpec, Vocab

# In the order of their ids: after everything else for the byte-level ones, before it for the others.
SPECIALS: dict[Vocab, tuple[str, ...]] = {
    Vocab.LLAMA3: ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"),
    Vocab.QWEN: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    Vocab.MISTRAL: ("<unk>", "<s>", "</s>"),
    Vocab.GEMMA: ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
}
ROLES: dict[Vocab, dict[str, str]] = {
    Vocab.LLAMA3: {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|finetune_right_pad_id|>"},
    Vocab.QWEN: {"eos": "<|endoftext|>", "pad": "<|endoftext|>"},
    Vocab.MISTRAL: {"bos": "<s>", "eos": "</s>", "pad": "</s>", "unk": "<unk>"},
    Vocab.GEMMA: {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"},
}
CLASSES = {
    Vocab.LLAMA3: "PreTrainedTokenizerFast",
    Vocab.QWEN: "Qwen2Tokenizer",
    Vocab.MISTRAL: "LlamaTokenizer",
    Vocab.GEMMA: "GemmaTokenizer",
}
# As the published tokenizer.json files have them; they differ in how many digits go together.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {Vocab.LLAMA3: "{1,3}", Vocab.QWEN: ""}
Normalizer: TypeAlias = normalizers.Normalizer
PreTokenizer: TypeAlias = pre_tokenizers.PreTokenizer
SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
NUM_CHARACTERS = 70  # that a vocabulary with byte fallback knows as such
INSISTENCE = 1000  # how often a word is repeated that has to become one token


@dataclass(frozen=True)
class DecoderTokenizer(TokenizerSpec):
    """A tokenizer to train; `size` counts every token."""

    bos: bool = True  # whether one stands before each text
    eos: bool = False  # whether one stands after each text
    pad: str | None = None  # where it is not the usual token of the kind
    left: bool = True  # padding_side
    words: tuple[str, ...] = ()  # that have to be one token each
    added: tuple[str, ...] = ()  # tokens of no meaning to the tokenizer, after the special ones
    wrap_class: str | None = None  # tokenizer_class, where it is not the usual one

    @property
    def roles(self) -> dict[str, str]:
        """Role -> special token."""
        return ROLES[self.kind] | ({"pad": self.pad} if self.pad else {})


def train(spec: DecoderTokenizer, texts: list[str]) -> Tokenizer:
    """A tokenizer of exactly `spec.size` tokens with the normaliser, splitter and post-processor of its kind."""
    is_byte_level = spec.kind in DIGITS
    tokenizer = (_byte_level if is_byte_level else _byte_fallback)(spec, texts)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS[spec.kind]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in spec.added])
    template = _template(spec, tokenizer)
    if is_byte_level:
        byte_level = processors.ByteLevel(trim_offsets=False)
        template = processors.Sequence([byte_level, template]) if spec.bos or spec.eos else byte_level
    tokenizer.post_processor = template
    if tokenizer.get_vocab_size() != spec.size:
        raise ValueError(f"the texts gave {tokenizer.get_vocab_size()} tokens, {spec.size} were asked for")
    return tokenizer


def tokenizer_config(spec: DecoderTokenizer) -> dict[str, Any]:
    """tokenizer_config.json with the keys of the published ones that somebody reads."""
    config: dict[str, Any] = {f"{role}_token": token for role, token in spec.roles.items()}
    config |= {"clean_up_tokenization_spaces": False, "tokenizer_class": spec.wrap_class or CLASSES[spec.kind]}
    config |= {"add_bos_token": spec.bos, "add_eos_token": spec.eos}
    if spec.kind is Vocab.QWEN:
        config |= {"add_prefix_space": False, "bos_token": None, "errors": "replace", "unk_token": None}
    if spec.kind is Vocab.MISTRAL:
        config["legacy"] = True  # which is what puts a space before the text in transformers 5
    if spec.left:
        config["padding_side"] = "left"
    if spec.model_max_length is not None:
        config["model_max_length"] = spec.model_max_length
    return config


def _byte_level(spec: DecoderTokenizer, texts: list[str]) -> Tokenizer:
    normalizer = normalizers.NFC() if spec.kind is Vocab.QWEN else None
    pattern = Regex(WORDS.replace("DIGITS", DIGITS[spec.kind]))
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    splitter = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = spec.size - len(SPECIALS[spec.kind]) - len(spec.added)
    pieces, merges = _learn([*texts, *spec.words * INSISTENCE], normalizer, splitter, alphabet, size)
    vocab = {piece: position for position, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=spec.kind is Vocab.LLAMA3))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    return tokenizer


def _byte_fallback(spec: DecoderTokenizer, texts: list[str]) -> Tokenizer:
    spaces: list[Normalizer] = [normalizers.Replace(" ", SPACE)]
    if spec.kind is Vocab.MISTRAL:
        spaces.insert(0, normalizers.Prepend(SPACE))
    normalizer = normalizers.Sequence(spaces) if len(spaces) > 1 else spaces[0]
    # Only learning looks at words: a finished tokenizer merges across all of a text, and has nothing to merge there.
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
    if spec.kind is Vocab.MISTRAL:
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _learn(
    texts: list[str], normalizer: Normalizer | None, splitter: PreTokenizer, alphabet: list[str], size: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """`size` pieces in the order of their ids, and the merges that make them."""
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


def _template(spec: DecoderTokenizer, tokenizer: Tokenizer) -> processors.PostProcessor:
    roles = ROLES[spec.kind]
    before, after = ([roles["bos"]] if spec.bos else []), ([roles["eos"]] if spec.eos else [])
    single = [*before, "$A", *after]
    pair = [*single, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    named = [(token, tokenizer.token_to_id(token)) for token in (*before, *after)]
    return processors.TemplateProcessing(single, pair, named)
