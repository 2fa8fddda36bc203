"""`Family`, and the table of all model families, which every engine reads.

To add a family, add a `Family` to the list below, with a layout that says what its tensors are called and how its
config.json is read. If its layers compute something new, `Sizes` needs a field for it, and the `Transformer` of each
engine has to compute it. docs/architectures.md has the steps.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from bei_core.errors import UnsupportedModelError
from bei_core.models import decoder_layouts as decoders
from bei_core.models import encoder_layouts as encoders
from bei_core.models import rotary_layouts as rotary
from bei_core.models.class_defaults import CLASS_DEFAULTS
from bei_core.models.configuration import Config
from bei_core.models.heads import FamilyHeads, Head
from bei_core.models.layouts import STATIC, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models with the same layers."""

    name: str  # its name in the files of engines
    classes: tuple[str, ...]  # the beginnings of transformers' class names: "Bert" of BertModel and BertForMaskedLM
    heads: FamilyHeads
    layout: Layout  # the names of its tensors, and how its config.json is read
    prefixes: tuple[str, ...] = ("",)  # which a checkpoint may put before the names of tensors
    anchor: str  # the tensor (without prefix) by which the prefix is found
    has_own_code: bool = False  # its checkpoints come with code, because most releases of transformers lack the class

    @property
    def is_static(self) -> bool:
        """Whether its models are tables of token vectors, without a transformer."""
        return self.layout is STATIC

    @property
    def anchors(self) -> tuple[str, ...]:
        """The names of the anchor with each prefix."""
        return tuple(prefix + self.anchor for prefix in self.prefixes)


_ROBERTA_HEADS = FamilyHeads(
    sequence=Head("classifier.out_proj", "classifier.dense"),
    vocabulary=Head("lm_head.decoder", "lm_head.dense", "gelu", norm="lm_head.layer_norm", bias="lm_head.bias"),
)
_BERT_VOCABULARY = Head(
    "cls.predictions.decoder",
    "cls.predictions.transform.dense",
    "gelu",
    "hidden_act",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
)
_BERT_HEADS = FamilyHeads(Head("classifier", "bert.pooler.dense"), vocabulary=_BERT_VOCABULARY)
_ELECTRA_HEADS = FamilyHeads(
    sequence=Head("classifier.out_proj", "classifier.dense", "gelu"),
    vocabulary=Head("generator_lm_head", "generator_predictions.dense", "gelu", norm="generator_predictions.LayerNorm"),
)
_DISTILBERT_HEADS = FamilyHeads(
    sequence=Head("classifier", "pre_classifier", "relu"),
    vocabulary=Head("vocab_projector", "vocab_transform", "gelu", "activation", "vocab_layer_norm"),
)
_MODERN = Head("classifier", "head.dense", "gelu", "classifier_activation", "head.norm", reads="classifier_pooling")
_MODERN_HEADS = FamilyHeads(_MODERN, _MODERN, replace(_MODERN, out="decoder"))
_NOMIC_HEADS = replace(
    _BERT_HEADS, sequence=Head("classifier", "bert.pooler.dense", dense_elsewhere="nomic_bert.pooler.dense")
)
_GTE_HEADS = FamilyHeads(
    Head("classifier", "new.pooler.dense", dense_elsewhere="gte.pooler.dense"),
    vocabulary=Head("lm_head.decoder", "lm_head.dense", "gelu", "hidden_act", "lm_head.norm"),
)
_DEBERTA_HEADS = FamilyHeads(
    Head("classifier", "pooler.dense", "gelu", "pooler_hidden_act"), vocabulary=_BERT_VOCABULARY
)
_DECODER_HEADS = FamilyHeads(sequence=Head("score", reads="last non-padding token"), token=Head("score"))
_NO_HEADS = FamilyHeads(token=None)


def _family(
    name: str, classes: tuple[str, ...], layout: Layout, heads: FamilyHeads, *prefixes: str, has_own_code: bool = False
) -> Family:
    """Returns a family whose word embeddings show which of the prefixes a checkpoint has; it may have none."""
    return Family(
        name=name,
        classes=classes,
        heads=heads,
        layout=layout,
        prefixes=("", *prefixes),
        anchor=f"{layout.names[0].words}.weight",
        has_own_code=has_own_code,
    )


_FAMILIES = (
    _family("bert", ("Bert", "HF_ColBERT", "Contriever"), encoders.BERT, _BERT_HEADS, "bert."),
    _family("ernie", ("Ernie",), encoders.ERNIE, FamilyHeads(Head("classifier", "ernie.pooler.dense"), None), "ernie."),
    _family("electra", ("Electra",), encoders.ELECTRA, _ELECTRA_HEADS, "electra."),
    _family(
        "roberta",
        ("Roberta", "XLMRoberta", "XLMRobertaFlash", "Camembert"),
        encoders.ROBERTA,
        _ROBERTA_HEADS,
        "roberta.",
    ),
    _family("distilbert", ("DistilBert",), encoders.DISTILBERT, _DISTILBERT_HEADS, "distilbert."),
    _family("mpnet", ("MPNet",), encoders.MPNET, _ROBERTA_HEADS, "mpnet."),
    _family("modernbert", ("ModernBert",), rotary.MODERNBERT, _MODERN_HEADS, "model."),
    _family("nomic", ("NomicBert",), rotary.NOMIC, _NOMIC_HEADS, "bert.", "nomic_bert."),
    _family("new", ("New", "Gte"), rotary.GTE, _GTE_HEADS, "new.", "gte."),  # of its authors' code, and of transformers
    _family("jina_embeddings_v3", ("JinaEmbeddingsV3",), rotary.JINA_V3, _ROBERTA_HEADS, "roberta."),
    _family("deberta", ("DebertaV2",), encoders.DEBERTA, _DEBERTA_HEADS, "deberta."),
    _family("jina_bert", ("JinaBert",), encoders.JINA_BERT, _BERT_HEADS, "bert.", has_own_code=True),
    Family(
        name="t5",
        classes=("T5", "T5Encoder", "MT5", "MT5Encoder"),
        heads=_NO_HEADS,
        layout=encoders.T5,
        anchor="encoder.final_layer_norm.weight",
    ),
    # Tables without layers, of sentence-transformers and of model2vec; models/sentence/static.py finds which one it is.
    Family(name="static", classes=("StaticEmbedding",), heads=_NO_HEADS, layout=STATIC, anchor="embedding.weight"),
    Family(name="model2vec", classes=("Model2Vec",), heads=_NO_HEADS, layout=STATIC, anchor="embeddings"),
    _family("llama", ("Llama",), decoders.LLAMA, _DECODER_HEADS, "model."),
    _family("eurobert", ("EuroBert",), decoders.LLAMA_BIDIRECTIONAL, FamilyHeads(), "model.", has_own_code=True),
    _family("mistral", ("Mistral",), decoders.MISTRAL, _DECODER_HEADS, "model."),
    _family("qwen2", ("Qwen2",), decoders.QWEN2, _DECODER_HEADS, "model."),
    _family("qwen3", ("Qwen3",), decoders.QWEN3, _DECODER_HEADS, "model."),
    _family("gemma", ("Gemma",), decoders.GEMMA, _DECODER_HEADS, "model."),
    _family("gemma2", ("Gemma2",), decoders.GEMMA2, _DECODER_HEADS, "model."),
    _family("gemma3_text", ("Gemma3",), decoders.GEMMA3, _DECODER_HEADS, "model."),
    _family(
        "llama_bidirectional",
        ("LlamaBidirectional",),
        decoders.LLAMA_BIDIRECTIONAL,
        FamilyHeads(Head("score", reads="pooling", temperature="temperature"), token=None),
        "model.",
        has_own_code=True,
    ),
    _family(
        "qwen3_bidirectional",
        ("Qwen3Bidirectional",),
        decoders.QWEN3_BIDIRECTIONAL,
        _DECODER_HEADS,
        "model.",
        has_own_code=True,
    ),
)
FAMILIES = {name: family for family in _FAMILIES for name in family.classes}

_CLASS = re.compile(r"(\w+?)(?:Text)?(?:Model|For\w+)")


def family_name(architecture: str) -> str:
    """Returns the family in the name of a transformers class: "Llama" for "LlamaForCausalLM"; "" for other names.

    HF_ColBERT and Contriever, classes of other code, are families of their own.
    """
    if architecture in FAMILIES:
        return architecture
    match = _CLASS.fullmatch(architecture)
    return match.group(1) if match else ""


def family_of(architecture: str) -> Family:
    """Returns the family of a class such as `BertForSequenceClassification`.

    Raises UnsupportedModelError listing the known families.
    """
    name = family_name(architecture)
    if name not in FAMILIES:
        raise UnsupportedModelError(_unknown(architecture, name))
    return FAMILIES[name]


def _unknown(architecture: str, name: str) -> str:
    """Returns the error text for a class without a family: similar names, and how a class names its family."""
    close = difflib.get_close_matches(name, FAMILIES, cutoff=0.7)
    close += [known for known in FAMILIES if name and known not in close and (known in name or name in known)]
    similar = f"; similar families are {', '.join(close)}" if close else ""
    reason = f"there is no family {name}" if name else "its name has neither the form ...Model nor ...For..."
    return (
        f"architecture {architecture} is not supported: {reason}{similar}. The class in config.json "
        "names the family: LlamaModel, LlamaForCausalLM and LlamaForSequenceClassification are of the family Llama. "
        f"All families: {', '.join(sorted(FAMILIES))}"
    )


def with_class_defaults(architecture: str, config: Config) -> Config:
    """Returns config.json with the values of the class for keys that it lacks."""
    return {**CLASS_DEFAULTS.get(family_name(architecture), {}), **config}
