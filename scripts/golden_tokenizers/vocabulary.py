"""Tiny vocabularies in the forms in which models are published, trained on the test texts."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, trainers

REPOSITORY = Path(__file__).resolve().parents[2]
MIXED = REPOSITORY / "tests" / "data" / "texts" / "mixed.jsonl"

Files = dict[str, bytes]

# Characters that a sentencepiece model of its own normalises: ligatures, full-width letters, no-break spaces.
_CHARACTERS = {
    "\ufb01": "fi",
    "\uff21": "A",
    "\uff22": "B",
    "\uff23": "C",
    "\u2460": "1",
    "\u00a0": " ",
    "\t": " ",
    "\n": " ",
}


@cache
def corpus() -> list[str]:
    """Lines to train on."""
    with MIXED.open(encoding="utf-8", newline="\n") as lines:
        known = [json.loads(line)["text"] for line in lines]
    return [line for text in known for line in text.split("\n") if line.strip()]


def wordpiece(*, lowercase: bool, specials: Iterable[str]) -> Files:
    """A vocab.txt."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=420, special_tokens=list(specials), limit_alphabet=150, show_progress=False
    )
    made.train_from_iterator(corpus(), trainer)
    vocabulary = made.get_vocab(with_added_tokens=True)
    return {"vocab.txt": "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__)).encode()}


def byte_pairs(specials: Iterable[str] = ()) -> Files:
    """A vocab.json and a merges.txt."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(corpus(), vocab_size=360, special_tokens=list(specials), show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        made.save_model(folder)
        return {name: (Path(folder) / name).read_bytes() for name in ("vocab.json", "merges.txt")}


def sentence_pieces(name: str, **settings: object) -> Files:
    """A sentencepiece model."""
    written = io.BytesIO()
    rules = "".join(
        f"{' '.join(f'{ord(c):X}' for c in source)}\t{' '.join(f'{ord(c):X}' for c in target)}\n"
        for source, target in _CHARACTERS.items()
    )
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(rules)
        file.flush()
        if "normalization_rule_name" not in settings:
            settings["normalization_rule_tsv"] = file.name
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()),
            model_writer=written,
            **{"vocab_size": 480, "character_coverage": 0.98, "hard_vocab_limit": False, "minloglevel": 2, **settings},
        )
    return {name: written.getvalue()}


_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BYTES = {
    "model_type": "bpe",
    "byte_fallback": True,
    "vocab_size": 760,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}

_VOCABULARIES: Mapping[str, Callable[[], Files]] = {
    "bert": lambda: wordpiece(lowercase=True, specials=_BERT),
    "bert-cased": lambda: wordpiece(lowercase=False, specials=_BERT),
    "mpnet": lambda: wordpiece(lowercase=True, specials=("<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>")),
    "roberta": lambda: byte_pairs(("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
    "gpt2": lambda: byte_pairs(("<|endoftext|>",)),
    "qwen2": byte_pairs,
    "xlm-roberta": lambda: sentence_pieces("sentencepiece.bpe.model"),
    "t5": lambda: sentence_pieces("spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "albert": lambda: sentence_pieces(
        "spiece.model", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]"
    ),
    "deberta-v2": lambda: sentence_pieces(
        "spm.model",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        user_defined_symbols="[MASK]",
    ),
    "llama": lambda: sentence_pieces("tokenizer.model", **_BYTES),
    "gemma": lambda: sentence_pieces(
        "tokenizer.model",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols="<start_of_turn>,<end_of_turn>",
        add_dummy_prefix=False,
        **_BYTES,
    ),
}


@cache
def vocabulary(name: str) -> Files:
    """The files of a vocabulary, the same at each call: two trainings may differ."""
    return _VOCABULARIES[name]()
