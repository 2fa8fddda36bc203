"""`Family`, and the table of all model families, which every engine reads.

To add a family whose layers are those of another one, add a `Family` to the list below. If its layers are new, it also
needs a page in each engine that is to run it: a module `models/NAME.py` of `engines/openvino` and of `engines/torch`
(TensorRT-LLM uses torch's), which is found by its name. docs/architectures.md has the steps.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from bei_core.errors import UnsupportedModelError
from bei_core.models.class_defaults import CLASS_DEFAULTS
from bei_core.models.configuration import Config
from bei_core.models.heads import FamilyHeads, Head
from bei_core.models.layouts import (
    BertNames,
    DecoderSizes,
    DecoderSwitches,
    RotaryNames,
    all_but_every_sixth_layer,
    even_layers,
    every_layer,
    upper_layers,
)
from bei_core.models.rotary_layouts import GTE, JINA_V3, MODERNBERT, NOMIC, native

_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models with the same layers."""

    name: str  # its name in the files of engines
    classes: tuple[str, ...]  # the beginnings of transformers' class names: "Bert" of BertModel and BertForMaskedLM
    page: str  # the module `models/PAGE.py` of each engine that computes its layers
    heads: FamilyHeads
    layout: Any = None  # how it differs from other families with the same page; a class of models/layouts.py
    prefixes: tuple[str, ...] = ("", "model.")  # which a checkpoint may put before the names of tensors
    anchor: str = "embed_tokens.weight"  # the tensor (without prefix) by which the prefix is found: word embeddings
    has_own_code: bool = False  # its checkpoints come with code, because most releases of transformers lack the class

    def first_position(self, config: Config) -> int:
        """Returns the row of the position table for a text's first token."""
        padding_id = self.layout[0].padding_id_of(config) if self.page == "bert" else None
        return 0 if padding_id is None else padding_id + 1

    def is_causal(self, config: Config) -> bool:
        """Whether a token attends only to itself and to tokens before it."""
        return self.page == "decoder" and not DecoderSizes.of(self.layout, config).bidirectional

    def has_position_table(self, config: Config) -> bool:
        """Whether the checkpoint has an embedding for each position; else their number limits nothing."""
        if self.page == "bert":
            return not self.layout[0].has_alibi
        return self.page == "deberta" and bool(config.get("position_biased_input", True))

    @property
    def has_rope(self) -> bool:
        """Whether its positions are rotary."""
        return self.page in {"rotary", "decoder"}

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
_MODERN = Head("classifier", "head.dense", "gelu", "classifier_activation", "head.norm", reads="classifier_pooling")
_DECODER_HEADS = FamilyHeads(sequence=Head("score", reads="last non-padding token"), token=Head("score"))

_ROBERTA = BertNames(padding_id="pad_token_id")
# jinaai/xlm-roberta-flash-implementation: the same layers under the names of the flash-attention library.
_ROBERTA_FLASH = BertNames(
    layer="encoder.layers.{}.",
    qkv=("mixer.Wqkv",),
    out="mixer.out_proj",
    attention_norm="norm1",
    up=("mlp.fc1",),
    down="mlp.fc2",
    mlp_norm="norm2",
    embedding_norm="emb_ln",
    padding_id="pad_token_id",
)
_DISTILBERT = BertNames(
    layer="transformer.layer.{}.",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up=("ffn.lin1",),
    down="ffn.lin2",
    mlp_norm="output_layer_norm",
    has_types=False,
    config_names={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
)
_MPNET = BertNames(
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
    padding_id=1,  # transformers' MPNet ignores pad_token_id
    has_types=False,
    relative_attention="encoder.relative_attention_bias.weight",
)
# JinaBERT v2 (Günther et al. 2023). Two published classes have this name: `jinaai/jina-bert-implementation`
# (jina-embeddings-v2, jina-reranker-v1) and `jinaai/jina-bert-v2-qk-post-norm` (jina-embeddings-v2-base-code), which
# also has norms of queries and keys, and one more residual connection and norm around attention.
_JINA_BERT = BertNames(up=("mlp.gated_layers",), down="mlp.wo", mlp_norm="mlp.layernorm", has_alibi=True)
_JINA_BERT_CODE = BertNames(
    up=("mlp.up_gated_layer",),
    up_first=True,
    down="mlp.down_layer",
    mlp_norm="layer_norm_2",
    qk_norms="attention.self.layer_norm_",
    attention_out_norm="layer_norm_1",
    has_alibi=True,
)
_QWEN3 = DecoderSwitches(is_sliding=upper_layers, qk_norm=True)


def _bert(name: str, classes: tuple[str, ...], heads: FamilyHeads, *layouts: BertNames) -> Family:
    """Returns a family of BERT-like encoders; a checkpoint has the tensor names of one of the layouts."""
    prefixes = ("", f"{name}.")
    return Family(
        name=name,
        classes=classes,
        page="bert",
        heads=heads,
        layout=layouts,
        prefixes=prefixes,
        anchor=_WORDS,
    )


def _decoder(
    name: str,
    classes: tuple[str, ...],
    switches: DecoderSwitches,
    heads: FamilyHeads = _DECODER_HEADS,
    has_own_code: bool = False,
) -> Family:
    return Family(
        name=name,
        classes=classes,
        page="decoder",
        heads=heads,
        layout=switches,
        has_own_code=has_own_code,
    )


def _rotary(
    name: str, classes: tuple[str, ...], heads: FamilyHeads, layouts: tuple[RotaryNames, ...], *prefixes: str
) -> Family:
    """Returns a family of encoders with rotary positions; a checkpoint has the tensor names of one of the layouts."""
    return Family(
        name=name,
        classes=classes,
        page="rotary",
        heads=heads,
        layout=layouts,
        prefixes=("", *prefixes),
        anchor=f"{layouts[0].words}.weight",
    )


_FAMILIES = (
    _bert("bert", ("Bert", "HF_ColBERT", "Contriever"), _BERT_HEADS, BertNames()),
    _bert(
        "ernie",
        ("Ernie",),
        replace(_BERT_HEADS, sequence=Head("classifier", "ernie.pooler.dense"), token=None, vocabulary=None),
        BertNames(has_task_types=True),
    ),
    _bert(
        "electra",
        ("Electra",),
        FamilyHeads(
            sequence=Head("classifier.out_proj", "classifier.dense", "gelu"),
            vocabulary=Head(
                "generator_lm_head", "generator_predictions.dense", "gelu", norm="generator_predictions.LayerNorm"
            ),
        ),
        BertNames(),
    ),
    _bert(
        "roberta", ("Roberta", "XLMRoberta", "XLMRobertaFlash", "Camembert"), _ROBERTA_HEADS, _ROBERTA, _ROBERTA_FLASH
    ),
    _bert(
        "distilbert",
        ("DistilBert",),
        FamilyHeads(
            sequence=Head("classifier", "pre_classifier", "relu"),
            vocabulary=Head("vocab_projector", "vocab_transform", "gelu", "activation", "vocab_layer_norm"),
        ),
        _DISTILBERT,
    ),
    _bert("mpnet", ("MPNet",), _ROBERTA_HEADS, _MPNET),
    _rotary(
        "modernbert",
        ("ModernBert",),
        FamilyHeads(_MODERN, _MODERN, replace(_MODERN, out="decoder")),
        (MODERNBERT,),
        "model.",
    ),
    _rotary(
        "nomic",
        ("NomicBert",),
        replace(
            _BERT_HEADS, sequence=Head("classifier", "bert.pooler.dense", dense_elsewhere="nomic_bert.pooler.dense")
        ),
        (NOMIC, native(NOMIC)),
        "bert.",
        "nomic_bert.",
    ),
    _rotary(
        "new",
        ("New", "Gte"),  # of its authors' code, and of transformers
        FamilyHeads(
            Head("classifier", "new.pooler.dense", dense_elsewhere="gte.pooler.dense"),
            vocabulary=Head("lm_head.decoder", "lm_head.dense", "gelu", "hidden_act", "lm_head.norm"),
        ),
        (GTE, native(GTE)),
        "new.",
        "gte.",
    ),
    _rotary("jina_embeddings_v3", ("JinaEmbeddingsV3",), _ROBERTA_HEADS, (JINA_V3, native(JINA_V3)), "roberta."),
    Family(
        name="deberta",
        classes=("DebertaV2",),
        page="deberta",
        heads=FamilyHeads(Head("classifier", "pooler.dense", "gelu", "pooler_hidden_act"), vocabulary=_BERT_VOCABULARY),
        prefixes=("", "deberta."),
        anchor=_WORDS,
    ),
    replace(
        _bert("jina_bert", ("JinaBert",), _BERT_HEADS, _JINA_BERT, _JINA_BERT_CODE),
        prefixes=("", "bert."),
        has_own_code=True,
    ),
    Family(
        name="t5",
        classes=("T5", "T5Encoder", "MT5", "MT5Encoder"),
        page="t5",
        heads=FamilyHeads(token=None),
        prefixes=("",),
        anchor="encoder.final_layer_norm.weight",
    ),
    # Tables without layers, of sentence-transformers and of model2vec; models/sentence/static.py finds which one it is.
    Family(
        name="static",
        classes=("StaticEmbedding",),
        page="static",
        heads=FamilyHeads(token=None),
        prefixes=("",),
        anchor="embedding.weight",
    ),
    Family(
        name="model2vec",
        classes=("Model2Vec",),
        page="static",
        heads=FamilyHeads(token=None),
        prefixes=("",),
        anchor="embeddings",
    ),
    _decoder("llama", ("Llama",), DecoderSwitches()),
    _decoder("eurobert", ("EuroBert",), DecoderSwitches(bidirectional=True), FamilyHeads(), has_own_code=True),
    _decoder("mistral", ("Mistral",), DecoderSwitches(is_sliding=every_layer)),
    _decoder("qwen2", ("Qwen2",), DecoderSwitches(is_sliding=upper_layers, qkv_bias=True)),
    _decoder("qwen3", ("Qwen3",), _QWEN3),
    _decoder("gemma", ("Gemma",), DecoderSwitches(gemma=True)),
    _decoder("gemma2", ("Gemma2",), DecoderSwitches(is_sliding=even_layers, gemma=True, out_norms=True)),
    _decoder(
        "gemma3_text",
        ("Gemma3",),
        DecoderSwitches(is_sliding=all_but_every_sixth_layer, qk_norm=True, gemma=True, out_norms=True),
    ),
    _decoder(
        "llama_bidirectional",
        ("LlamaBidirectional",),
        DecoderSwitches(bidirectional=True),
        FamilyHeads(Head("score", reads="pooling", temperature="temperature"), token=None),
        has_own_code=True,
    ),
    _decoder("qwen3_bidirectional", ("Qwen3Bidirectional",), replace(_QWEN3, bidirectional=True), has_own_code=True),
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
