"""The registry of model families: the name of a transformers class to the graph builder that reads it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from bei_core.engines.openvino.models.bert import Bert
from bei_core.engines.openvino.models.blocks import Transformer
from bei_core.engines.openvino.models.deberta import DebertaV2
from bei_core.engines.openvino.models.decoders import DecoderModel
from bei_core.engines.openvino.models.jina_bert import JinaBert
from bei_core.engines.openvino.models.rotary import Gte, ModernBert, NomicBert
from bei_core.engines.openvino.models.t5 import T5Encoder
from bei_core.engines.openvino.models.weights import Weights
from bei_core.errors import UnsupportedModelError
from bei_core.models import families
from bei_core.models.configuration import Config


@dataclass(frozen=True, slots=True)
class Family:
    """How to make a family's transformer, and how to find its tensors in a checkpoint."""

    make: Callable[[Config, Weights, int], Transformer]  # of config.json, weights and the maximum sequence length
    prefixes: tuple[str, ...]  # that a checkpoint may put before tensor names
    anchor: str  # the word embedding table without prefix: the prefix under which it exists is the checkpoint's


def _bert(name: str) -> Family:
    return Family(partial(Bert, families.BERTS[name]), families.BERTS[name].prefixes, families.BERT_ANCHOR)


def _roberta(config: Config, weights: Weights, max_len: int) -> Transformer:
    """RoBERTa or XLM-RoBERTa, by the names of the tensors: jina-reranker-v2's class is called XLMRoberta too."""
    names = families.BERTS["roberta_flash" if "emb_ln.weight" in weights else "roberta"]
    return Bert(names, config, weights, max_len)


def _decoder(name: str) -> Family:
    return Family(partial(DecoderModel, families.DECODERS[name]), families.DECODER_PREFIXES, families.DECODER_ANCHOR)


FAMILIES: Mapping[str, Family] = {
    "Bert": _bert("bert"),
    "Electra": _bert("electra"),
    "Roberta": _bert("roberta"),
    "XLMRoberta": replace(_bert("roberta"), make=_roberta),
    "XLMRobertaFlash": replace(_bert("roberta"), make=_roberta),
    "Camembert": _bert("roberta"),
    "DistilBert": _bert("distilbert"),
    "MPNet": _bert("mpnet"),
    "ModernBert": Family(ModernBert, ModernBert.PREFIXES, ModernBert.ANCHOR),
    "NomicBert": Family(NomicBert, NomicBert.PREFIXES, NomicBert.ANCHOR),
    "New": Family(Gte, Gte.PREFIXES, Gte.ANCHOR),
    "Gte": Family(Gte, Gte.PREFIXES, Gte.ANCHOR),  # the same architecture inside transformers
    "DebertaV2": Family(DebertaV2, DebertaV2.PREFIXES, DebertaV2.ANCHOR),
    "JinaBert": Family(JinaBert, JinaBert.PREFIXES, JinaBert.ANCHOR),
    **dict.fromkeys(("T5", "T5Encoder", "MT5", "MT5Encoder"), Family(T5Encoder, T5Encoder.PREFIXES, T5Encoder.ANCHOR)),
    "Llama": _decoder("llama"),
    "LlamaBidirectional": _decoder("llama_bidirectional"),
    "Mistral": _decoder("mistral"),
    "Qwen2": _decoder("qwen2"),
    "Qwen3": _decoder("qwen3"),
    "Qwen3Bidirectional": _decoder("qwen3_bidirectional"),
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
        raise UnsupportedModelError(_unknown(architecture, name or architecture))
    return name


def _unknown(architecture: str, name: str) -> str:
    """What to say of a class without a family: the families with similar names, and how a class names its family."""
    close = difflib.get_close_matches(name, FAMILIES, cutoff=0.7)
    close += [known for known in FAMILIES if known not in close and (known in name or name in known)]
    similar = f"; similar families are {', '.join(close)}" if close else ""
    return (
        f"architecture {architecture} is not supported: there is no family {name}{similar}. The class in config.json "
        "names the family: LlamaModel, LlamaForCausalLM and LlamaForSequenceClassification are of the family Llama. "
        f"All families: {', '.join(sorted(FAMILIES))}"
    )
