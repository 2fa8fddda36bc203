"""The registry of model families: the name of a transformers class to the graph builder that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bei_core.engines.openvino.models.bert import Bert
from bei_core.engines.openvino.models.blocks import Transformer
from bei_core.engines.openvino.models.deberta import DebertaV2
from bei_core.engines.openvino.models.decoders import DecoderModel
from bei_core.engines.openvino.models.rotary import Gte, ModernBert, NomicBert
from bei_core.engines.openvino.models.weights import Weights
from bei_core.errors import UnsupportedModelError
from bei_core.models import families
from bei_core.models.families import Config


@dataclass(frozen=True, slots=True)
class Family:
    """How to make a family's transformer, and how to find its tensors in a checkpoint."""

    make: Callable[[Config, Weights, int], Transformer]  # of config.json, weights and the maximum sequence length
    prefixes: tuple[str, ...]  # that a checkpoint may put before tensor names
    anchor: str  # the word embedding table without prefix: the prefix under which it exists is the checkpoint's


def _bert(name: str) -> Family:
    return Family(partial(Bert, families.BERTS[name]), families.BERTS[name].prefixes, families.BERT_ANCHOR)


def _decoder(name: str) -> Family:
    return Family(partial(DecoderModel, families.DECODERS[name]), families.DECODER_PREFIXES, families.DECODER_ANCHOR)


FAMILIES: Mapping[str, Family] = {
    "Bert": _bert("bert"),
    "Electra": _bert("electra"),
    "Roberta": _bert("roberta"),
    "XLMRoberta": _bert("roberta"),
    "Camembert": _bert("roberta"),
    "DistilBert": _bert("distilbert"),
    "MPNet": _bert("mpnet"),
    "ModernBert": Family(ModernBert, ModernBert.PREFIXES, ModernBert.ANCHOR),
    "NomicBert": Family(NomicBert, NomicBert.PREFIXES, NomicBert.ANCHOR),
    "New": Family(Gte, Gte.PREFIXES, Gte.ANCHOR),
    "Gte": Family(Gte, Gte.PREFIXES, Gte.ANCHOR),  # the same architecture inside transformers
    "DebertaV2": Family(DebertaV2, DebertaV2.PREFIXES, DebertaV2.ANCHOR),
    "Llama": _decoder("llama"),
    "Mistral": _decoder("mistral"),
    "Qwen2": _decoder("qwen2"),
    "Qwen3": _decoder("qwen3"),
    "Gemma2": _decoder("gemma2"),
    "Gemma3": _decoder("gemma3_text"),
}

_OTHERS = {"HF_ColBERT": "Bert"}  # stanford-futuredata/ColBERT's own class around a BertModel


def family_of(architecture: str) -> str:
    """The key in FAMILIES of a class such as `BertForSequenceClassification`.

    Raises UnsupportedModelError listing the known families.
    """
    name = _OTHERS.get(architecture) or families.family_name(architecture)
    if name not in FAMILIES:
        known = ", ".join(f"{family}..." for family in sorted(FAMILIES))
        raise UnsupportedModelError(f"architecture {architecture} is not supported; known are {known}")
    return name
