"""What a golden checkpoint is made of: the vocabulary of the table in `table.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

# A SentenceTransformer, or transformers' own class. Where types are checked, neither they nor torch are installed.
Model: TypeAlias = Any
Json: TypeAlias = Any

CLASSIFIER = "ForSequenceClassification"


class Layout(Enum):
    """Who wrote the folder, which decides the files in it and the class names in modules.json."""

    LEGACY = "sentence-transformers 2 to 5.3"
    MODERN = "sentence-transformers 6.2"
    PLAIN = "transformers alone, or an older CrossEncoder: no modules.json"


class Vocab(Enum):
    """The kind of tokenizer."""

    WORDPIECE = "BERT"
    MPNET = "MPNet: WordPiece between <s> and </s>"
    BYTE_BPE = "RoBERTa"
    UNIGRAM = "XLM-R"
    LLAMA3 = "Llama 3: bytes, runs of up to three digits, special tokens last"
    QWEN = "Qwen: bytes, NFC, digits one by one, special tokens last"
    MISTRAL = "Llama 2 and Mistral: a space before the text, bytes only for what the vocabulary lacks"
    GEMMA = "Gemma: as MISTRAL, without the space before the text"


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer to train, and how the folder describes it."""

    kind: Vocab
    size: int
    pad_id: int | None = None  # None: where the original has it
    lowercase: bool = True
    add_prefix_space: bool = False  # byte-level BPE only
    nfkc: bool = False  # then tokenizer_class is the generic one: transformers 5 drops it under the class of its own
    baked_limits: bool = False  # truncation and padding inside tokenizer.json, which a reader has to override
    model_max_length: int | None = None


@dataclass(frozen=True)
class Storage:
    """How the weights lie in the safetensors."""

    dtype: str = "float32"
    prefix: str = ""
    head: bool = False  # the unused tensors of a masked language model, and its class in `architectures`
    pooler: bool = False  # BERT's classifier has one whatever this says; the others' do not use theirs
    position_ids: bool = False  # the int64 buffer that transformers wrote until 4.31
    gamma_beta: bool = False  # LayerNorm's names in checkpoints converted from TensorFlow
    shards: int = 1


@dataclass(frozen=True)
class Pooling:
    """1_Pooling/config.json, word for word."""

    config: dict[str, Any]


@dataclass(frozen=True)
class Dense:
    """A Dense module, with the activation as its config names it."""

    in_features: int
    out_features: int
    activation: str
    bias: bool = True


@dataclass(frozen=True)
class Normalize:
    """L2 normalisation."""


Module = Pooling | Dense | Normalize


@dataclass(frozen=True)
class CaseSpec:
    """One golden checkpoint."""

    name: str
    covers: str
    architecture: str
    tokenizer: TokenizerSpec
    modules: tuple[Module, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)  # over the architecture's defaults in `folder.py`
    storage: Storage = Storage()
    layout: Layout = Layout.LEGACY
    max_seq_length: int | None = None  # of sentence_bert_config.json
    do_lower_case: bool = False  # of sentence_bert_config.json
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    @property
    def is_classifier(self) -> bool:
        """Whether the checkpoint gives logits instead of a vector."""
        return self.architecture.endswith(CLASSIFIER)

    @property
    def base(self) -> str:
        """The class of the transformer inside."""
        return self.architecture.removesuffix(CLASSIFIER) + "Model" if self.is_classifier else self.architecture
