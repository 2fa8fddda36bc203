"""The tokenizer classes of transformers: what each of them adds to the files of a folder.

Source: transformers 4.57, `models/*/tokenization_*_fast.py`. Nearly all models were published with this version or an
older one; version 5 rewrote the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Flags: TypeAlias = Mapping[str, bool]  # keyword arguments of AddedToken

# How a class changes the tokenizer.json that it reads.
Adjustment: TypeAlias = Literal["none", "bert", "mpnet", "roberta", "prefix space", "bos and eos"]

# From which files, and how, a class makes its tokenizer if there is no tokenizer.json.
Source: TypeAlias = Literal["none", "wordpiece", "roberta", "gpt2", "qwen2", "sentencepiece"]


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """One tokenizer class."""

    name: str  # without `Tokenizer` and `Fast`
    tokens: Mapping[str, str] = field(default_factory=dict)  # special tokens by attribute, if no file names them
    flags: Mapping[str, Flags] = field(default_factory=dict)  # of a special token, by attribute
    additional: tuple[str, ...] = ()  # `additional_special_tokens`, if no file names them
    adjustment: Adjustment = "none"
    has_types: bool = True  # whether it gives token types, unless tokenizer_config.json says it
    add_bos: bool = False  # for the adjustment "bos and eos", unless tokenizer_config.json says it
    # How special tokens separate a pair: "one separator", "two separators", "eos after each"; None: no special tokens.
    template: str | None = None
    source: Source = "none"
    vocab_file: str = ""  # the file that `source` reads


_BERT = TokenizerClass(
    name="Bert",
    tokens={
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    adjustment="bert",
    template="one separator",
    source="wordpiece",
    vocab_file="vocab.txt",
)

_FAIRSEQ_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}

_ROBERTA = TokenizerClass(
    name="Roberta",
    tokens=_FAIRSEQ_TOKENS,
    flags={"mask_token": {"lstrip": True, "normalized": False}},
    adjustment="roberta",
    has_types=False,
    template="two separators",
    source="roberta",
    vocab_file="vocab.json",
)

_XLM_ROBERTA = TokenizerClass(
    name="XLMRoberta",
    tokens=_FAIRSEQ_TOKENS,
    flags={"mask_token": {"lstrip": True}},
    has_types=False,
    template="two separators",
    source="sentencepiece",
    vocab_file="sentencepiece.bpe.model",
)

_DEBERTA_V2 = TokenizerClass(
    name="DebertaV2",
    tokens={**_BERT.tokens, "bos_token": "[CLS]", "eos_token": "[SEP]"},
    template="one separator",
    source="sentencepiece",
    vocab_file="spm.model",
)

_GPT2 = TokenizerClass(
    name="GPT2",
    tokens={"unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    adjustment="prefix space",
    has_types=False,
    source="gpt2",
    vocab_file="vocab.json",
)

_LLAMA = TokenizerClass(
    name="Llama",
    tokens={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    adjustment="bos and eos",
    has_types=False,
    add_bos=True,
    source="sentencepiece",
    vocab_file="tokenizer.model",
)

_T5 = TokenizerClass(
    name="T5",
    tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    additional=tuple(f"<extra_id_{index}>" for index in range(100)),
    has_types=False,
    template="eos after each",
    source="sentencepiece",
    vocab_file="spiece.model",
)

_SPECIAL = {"special": True, "normalized": False}

_CLASSES = (
    TokenizerClass(name="PreTrained"),
    TokenizerClass(name="TokenizersBackend"),  # what transformers 5 calls PreTrainedTokenizerFast
    _BERT,
    replace(_BERT, name="DistilBert", has_types=False),
    replace(_BERT, name="RetriBert", has_types=False),
    *(
        replace(_BERT, name=name)
        for name in ("Electra", "MobileBert", "ConvBert", "SqueezeBert", "Lxmert", "LayoutLM", "DPRQuestionEncoder")
    ),
    replace(_BERT, name="DPRContextEncoder"),
    replace(
        _BERT,
        name="Herbert",
        tokens={**_BERT.tokens, "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        | {"mask_token": "<mask>"},
        adjustment="none",
        source="none",
        vocab_file="",
    ),
    replace(
        _BERT,
        name="MPNet",
        tokens={**_FAIRSEQ_TOKENS, "unk_token": "[UNK]"},
        flags={**{name: {} for name in _FAIRSEQ_TOKENS}, "mask_token": {"lstrip": True}},
        adjustment="mpnet",
        has_types=False,
        template="two separators",
    ),
    _ROBERTA,
    replace(_ROBERTA, name="Longformer"),
    replace(_ROBERTA, name="Bart", flags={"mask_token": {"lstrip": True, "normalized": True, "special": True}}),
    _XLM_ROBERTA,
    replace(
        _XLM_ROBERTA,
        name="Camembert",
        flags={"mask_token": {"lstrip": True, "special": True}},
        additional=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
    replace(
        _DEBERTA_V2,
        name="Albert",
        tokens={**_DEBERTA_V2.tokens, "unk_token": "<unk>", "pad_token": "<pad>"},
        flags={"mask_token": {"lstrip": True, "normalized": False}},
        vocab_file="spiece.model",
    ),
    _DEBERTA_V2,
    replace(_DEBERTA_V2, name="Deberta", adjustment="prefix space", source="none", vocab_file=""),
    _GPT2,
    replace(_GPT2, name="GPTNeoX", adjustment="bos and eos", source="none", vocab_file=""),
    replace(
        _GPT2,
        name="Qwen2",
        tokens={"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        flags=dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), _SPECIAL),
        adjustment="none",
        source="qwen2",
    ),
    _LLAMA,
    replace(
        _LLAMA,
        name="Gemma",
        tokens={"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    ),
    replace(
        _LLAMA,
        name="Cohere",
        tokens={"unk_token": "<UNK>", "bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
        source="none",
        vocab_file="",
    ),
    _T5,
    replace(_T5, name="MT5"),
)

CLASSES: Mapping[str, TokenizerClass] = {each.name: each for each in _CLASSES}

# For files that name no class: `model_type` without "-" and "_" to the class, if the two names differ.
_ALIASES = {
    "ernie": "Bert",
    "megatronbert": "Bert",
    "nezha": "Bert",
    "visualbert": "Bert",
    "data2vectext": "Roberta",
    "ibert": "Roberta",
    "robertaprelayernorm": "Roberta",
    "xlmrobertaxl": "XLMRoberta",
    "xmod": "XLMRoberta",
    "mistral": "Llama",
    "phi3": "Llama",
    "qwen3": "Qwen2",
    "gemma2": "Gemma",
    "gemma3": "Gemma",
    "gemma3text": "Gemma",
    "umt5": "T5",
    "dpr": "DPRQuestionEncoder",
}
_BY_TYPE = {name.lower(): name for name in CLASSES} | _ALIASES


def class_of_type(model_type: str) -> TokenizerClass | None:
    """The class for a `model_type` of config.json, or for the first part of an architecture's name; None if unknown."""
    name = _BY_TYPE.get(model_type.lower().replace("-", "").replace("_", ""))
    return None if name is None else CLASSES[name]
