"""The files of an engine folder for TensorRT-LLM: a checkpoint in Hugging Face's layout that names our own class.

    config.json         the model's own, with our class in `architectures` and `Facts` under `bei`
    model.safetensors   the transformer's tensors under their original names; those of modules or head under `bei.`, f32

This module does not need torch, so any machine can build a folder that is not quantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from bei_core.checkpoint import Checkpoint, Tensors
from bei_core.engines.tensorrt_llm.tensorfile import Entry, write_tensors
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.families import (
    BERT_ANCHOR,
    BERTS,
    DECODER_ANCHOR,
    DECODER_PREFIXES,
    DECODER_PROJECTION,
    DECODERS,
    BertSizes,
    DecoderSizes,
    family_name,
    heads_of,
)
from bei_core.models.spec import Classifier, Dense, ModelSpec

Array = npt.NDArray[Any]
Mask = Literal["full", "causal"]

# The families that this engine supports: the name in transformers' classes to the key in models/families.
_BERTS = {
    "Bert": "bert",
    "Electra": "electra",
    "Roberta": "roberta",
    "XLMRoberta": "roberta",
    "Camembert": "roberta",
    "DistilBert": "distilbert",
}
_DECODERS = {
    "Llama": "llama",
    "Mistral": "mistral",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
    "Gemma2": "gemma2",
    "Gemma3": "gemma3_text",
}
FAMILIES: Mapping[str, str] = {**_BERTS, **_DECODERS}
KINDS = ("embedding", "classifier", "reranker")

HEAD_PREFIX = "bei."  # of the tensors of modules and heads
WEIGHTS, CONFIG = "model.safetensors", "config.json"

# Prefixes of a checkpoint's head tensors. They are not copied with the transformer: `head_tensors` writes those in use.
_HEAD_TENSORS = ("lm_head.", "cls.", "generator_", "vocab_", "classifier.", "pre_classifier.", "score.")


_QUANTIZED = ("F8_E4M3", "U8")
_FLOAT_DTYPES = ("BF16", "F16", "F32", *_QUANTIZED)  # tensors of other dtypes are buffers, which the engine computes


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What our model class reads in config.json, under `bei`."""

    family: str  # a key of BERTS or DECODERS
    mask: Mask  # attention within a sequence: "full" or "causal"
    spec: ModelSpec
    quantized: tuple[str, ...] = ()  # "attention", "mlp": the parts whose linear layers are quantised

    @property
    def is_bert(self) -> bool:
        """Whether the family is a BERT-like encoder; otherwise it is a decoder."""
        return self.family in BERTS

    @property
    def anchor(self) -> str:
        """Name of the word embedding table, without prefix."""
        return BERT_ANCHOR if self.is_bert else DECODER_ANCHOR

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefixes that a checkpoint may put before the transformer's tensor names."""
        return BERTS[self.family].prefixes if self.is_bert else DECODER_PREFIXES

    @property
    def needs_segment_attention(self) -> bool:
        """Whether the model has soft-capped scores, or a window shorter than its longest sequence.

        Our SegmentAttention computes these. It loops over the sequences of a batch, so no CUDA graph can contain it.
        """
        if self.is_bert:
            return False
        switches = DECODERS[self.family]
        sizes = DecoderSizes.of(switches, self.spec.config)
        windows = [sizes.window(switches, layer_type) for layer_type in sizes.layer_types]
        return sizes.soft_cap is not None or any(w is not None and w < self.spec.max_seq_len for w in windows)


def facts_of(spec: ModelSpec, quantized: tuple[str, ...] = ()) -> Facts:
    """What our class needs to know of a model.

    Raises UnsupportedModelError for a family or kind of model that this engine does not support.
    """
    name = family_name(spec.architecture)
    if name not in FAMILIES or spec.kind not in KINDS:
        what = f"a model of kind {spec.kind}" if name in FAMILIES else spec.architecture
        raise UnsupportedModelError(
            f"the TensorRT-LLM engine does not run {what}; it runs {', '.join(FAMILIES)} as {', '.join(KINDS)}. "
            "The CPU engine may: --engine openvino"
        )
    family = FAMILIES[name]
    if family in BERTS:
        BertSizes.of(BERTS[family], spec.config)
        return Facts(family=family, mask="full", spec=spec, quantized=quantized)
    sizes = DecoderSizes.of(DECODERS[family], spec.config)
    return Facts(family=family, mask="full" if sizes.bidirectional else "causal", spec=spec, quantized=quantized)


def class_name(facts: Facts) -> str:
    """Name of our class in config.json, such as BeiLlamaEmbedding or BeiLlamaForSequenceClassification."""
    name = family_name(facts.spec.architecture)
    return f"Bei{name}{'Embedding' if facts.spec.classifier is None else 'ForSequenceClassification'}"


def class_names() -> Iterator[str]:
    """Every name that `class_name` can return."""
    for name in FAMILIES:
        yield from (f"Bei{name}Embedding", f"Bei{name}ForSequenceClassification")


def write_config(facts: Facts, dtype: str, folder: Path, more: Mapping[str, object] | None = None) -> None:
    """Writes config.json; `more` are keys that a quantised model has in addition."""
    config = dict(facts.spec.config)
    for unwanted in ("auto_map", "quantization_config"):
        config.pop(unwanted, None)
    heads, keys, size = _attention_sizes(facts)
    config |= {
        "architectures": [class_name(facts)],
        "torch_dtype": dtype,
        "dtype": dtype,
        # TensorRT-LLM's Attention reads these; BERT's config.json has the first only.
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": size,
        **(more or {}),
        "bei": msgspec.to_builtins(facts),
    }
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))


def read_facts(folder: Path) -> Facts:
    """The facts in an engine folder's config.json."""
    return msgspec.convert(msgspec.json.decode((folder / CONFIG).read_bytes())["bei"], Facts)


def write_weights(transformer: Tensors, checkpoint: Checkpoint, facts: Facts, dtype: str, path: Path) -> None:
    """Writes model.safetensors: the transformer in `dtype`, except quantised tensors and scales; the heads in f32."""
    if f"{DECODER_PROJECTION}.weight" in transformer:
        raise UnsupportedModelError(
            f"{checkpoint.source} ends with a projection of each token ({DECODER_PROJECTION}.weight), which the "
            "TensorRT-LLM engine does not run. The CPU engine does: --engine openvino"
        )
    entries = [
        Entry.of(name, transformer, None if _keeps_dtype(name, transformer.dtype(name)) else dtype)
        for name in transformer.names()
        if not name.startswith(_HEAD_TENSORS) and transformer.dtype(name) in _FLOAT_DTYPES
    ]
    entries += [Entry.f32(HEAD_PREFIX + name, value) for name, value in head_tensors(checkpoint, facts)]
    write_tensors(path, entries)


def _keeps_dtype(name: str, dtype: str) -> bool:
    return dtype in _QUANTIZED or name.endswith(("_scale", "_scale_2"))


def head_tensors(checkpoint: Checkpoint, facts: Facts) -> Iterator[tuple[str, Array]]:
    """(name, f32 tensor) of the modules or the head; the names are those in `models/heads`."""
    classifier = facts.spec.classifier
    if classifier is not None and classifier.answers is not None:
        yield "out.weight", _yes_no_row(checkpoint, classifier, facts)
    elif classifier is not None:
        yield from _head(checkpoint, facts)
    for module in facts.spec.modules:
        if isinstance(module, Dense):
            tensors = checkpoint.tensors(module.folder)
            for name in (f"{module.tensor}.weight", f"{module.tensor}.bias", "residual.weight"):
                if name in tensors and (module.bias or not name.endswith(".bias")):
                    yield f"{module.folder}.{name.replace(module.tensor, 'linear', 1)}", tensors.f32(name)


def _head(checkpoint: Checkpoint, facts: Facts) -> Iterator[tuple[str, Array]]:
    """The layers of a sequence classifier. Raises UnsupportedModelError if the family has no such head."""
    head = heads_of(family_name(facts.spec.architecture)).sequence
    if head is None:
        raise UnsupportedModelError(f"the head of {facts.spec.architecture} is not supported")
    tensors = checkpoint.tensors()
    for layer, name in (("dense", head.dense), ("out", head.out)):
        for part in ("weight", "bias"):
            if name is not None and (part == "weight" or f"{name}.bias" in tensors):
                yield f"{layer}.{part}", tensors.f32(f"{name}.{part}")


def _yes_no_row(checkpoint: Checkpoint, classifier: Classifier, facts: Facts) -> Array:
    """f32[1, H]: row "yes" minus row "no" of lm_head, or of the word embeddings if their weights are tied."""
    tensors = checkpoint.tensors()
    names = ("lm_head.weight", *(prefix + facts.anchor for prefix in facts.prefixes))
    name = next((name for name in names if name in tensors), None)
    if name is None or classifier.answers is None:
        raise CheckpointError(f"{checkpoint.source} has none of {', '.join(names)}")
    table, (no, yes) = tensors.f32(name), classifier.answers
    return np.ascontiguousarray((table[yes] if no is None else table[yes] - table[no])[None])


def _attention_sizes(facts: Facts) -> tuple[int, int, int]:
    """(number of query heads, number of key and value heads, size of a head)."""
    if facts.is_bert:
        bert = BertSizes.of(BERTS[facts.family], facts.spec.config)
        return bert.num_heads, bert.num_heads, bert.hidden // bert.num_heads
    sizes = DecoderSizes.of(DECODERS[facts.family], facts.spec.config)
    return sizes.num_heads, sizes.num_kv_heads, sizes.head_size
