"""Makes a tokenizer.json from vocab.txt (WordPiece), or from vocab.json and merges.txt (byte-level BPE).

Source: transformers 4.57, `convert_slow_tokenizer.py`, `BertConverter`, `RobertaConverter`, `GPT2Converter` and
`Qwen2Converter`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bei_core.errors import CheckpointError
from bei_core.text.published.components import Component, Config, bert_normalizer
from bei_core.text.published.folder import Published, as_token

# The regular expression by which Qwen2 splits a text before BPE (`QWEN2_PATTERN` of `tokenization_qwen2.py`).
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def empty_state(**parts: Any) -> Component:  # noqa: ANN401
    """Returns a tokenizer.json with these parts; all other parts are empty."""
    names = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
    return {"version": "1.0", "added_tokens": [], **dict.fromkeys(names), **parts}


def read_wordpiece(published: Published) -> Component:
    """Returns the tokenizer.json of a vocab.txt. Raises CheckpointError if that file is missing or not UTF-8 text."""
    config = published.config
    lines = _text(published.folder / published.kind.vocab_file).split("\n")
    words = lines[:-1] if lines[-1] == "" else lines
    unknown = str(as_token(config.get("unk_token") or published.kind.tokens["unk_token"]))
    splits_words = config.get("do_basic_tokenize", True)
    flags: Config = config if splits_words else dict.fromkeys(_BASIC, False)
    return empty_state(
        normalizer=bert_normalizer(flags, None),
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: index for index, word in enumerate(words)},
        },
    )


_BASIC = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


def read_byte_pairs(published: Published) -> Component:
    """Returns the tokenizer.json of vocab.json and merges.txt. Raises CheckpointError if a file is malformed."""
    source, folder = published.kind.source, published.folder
    prefix_space = bool(published.config.get("add_prefix_space", False))
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    is_qwen2 = source == "qwen2"
    pre_tokenizer = (
        {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]} if is_qwen2 else byte_level
    )
    return empty_state(
        normalizer={"type": "NFC"} if is_qwen2 else None,
        pre_tokenizer=pre_tokenizer,
        post_processor=None if source == "roberta" else {**byte_level, "trim_offsets": False},
        decoder={**byte_level, "add_prefix_space": True},
        model={
            "type": "BPE",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": _vocabulary(folder / published.kind.vocab_file),
            "merges": _merges(folder / "merges.txt", is_qwen2=is_qwen2),
        },
    )


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads(_text(path))
    except ValueError as fault:
        raise CheckpointError(f"{path} is not JSON: {fault}") from fault
    return found


def _merges(path: Path, *, is_qwen2: bool) -> list[list[str]]:
    """Returns the pairs of merges.txt in order.

    The first line names the version of the format. The classes of GPT-2 and RoBERTa leave it out whatever it has, and
    so they do with what follows the last line break. Qwen2's class looks for the version.
    """
    lines = _text(path).split("\n")
    lines = lines[lines[0].strip().startswith("#version:") :] if is_qwen2 else lines[1:-1]
    return [line.split() for line in lines if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise CheckpointError(f"{path} cannot be read: {fault}") from fault
