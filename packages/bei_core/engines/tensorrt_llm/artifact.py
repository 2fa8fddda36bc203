"""What an engine folder for TensorRT-LLM holds: a checkpoint in Hugging Face's layout that names our own class.

    config.json         the model's own, with our class in `architectures` and what that class reads under `bei`
    model.safetensors   the transformer under the names it came with; under `bei.` what stands on top of it, f32

No torch here: where weights are only cast, a machine without it builds the folder.
"""

from __future__ import annotations

import re
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
    DECODERS,
    BertSizes,
    DecoderSizes,
    heads_of,
)
from bei_core.models.spec import Classifier, Dense, ModelSpec

Array = npt.NDArray[Any]
Mask = Literal["full", "causal"]

# The families this engine runs, by what their classes are called in transformers.
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

TOP = "bei."  # prefix of the tensors that stand on top of the transformer
WEIGHTS, CONFIG = "model.safetensors", "config.json"

_CLASS = re.compile(r"(\w+?)(?:Text)?(?:Model|For\w+)")
# What stands on top of a transformer: `top_tensors` writes what of it is used.
_ABOVE = ("lm_head.", "cls.", "generator_", "vocab_", "classifier.", "pre_classifier.", "score.")


_QUANTIZED = ("F8_E4M3", "U8")
_KEPT = ("BF16", "F16", "F32", *_QUANTIZED)  # the rest are buffers of integers


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What our classes read in config.json, under `bei`."""

    family: str  # a key of BERTS or DECODERS
    mask: Mask  # which tokens of its own text a token sees: all of them, or those before it
    spec: ModelSpec
    quantized: tuple[str, ...] = ()  # "attention", "mlp": the parts whose products are not in `dtype`

    @property
    def is_bert(self) -> bool:
        """Whether the family is BERT's kin, not a decoder."""
        return self.family in BERTS

    @property
    def anchor(self) -> str:
        """The table of word embeddings, without prefix."""
        return BERT_ANCHOR if self.is_bert else DECODER_ANCHOR

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What may stand before the transformer's tensors."""
        return BERTS[self.family].prefixes if self.is_bert else DECODER_PREFIXES

    @property
    def needs_own_attention(self) -> bool:
        """Whether scores are capped or a window is shorter than a text, which TensorRT-LLM's kernels are not held to.

        Our own attention loops over the texts of a batch, so it cannot be in a CUDA graph.
        """
        if self.is_bert:
            return False
        switches = DECODERS[self.family]
        sizes = DecoderSizes.of(switches, self.spec.config)
        windows = [sizes.window(switches, kind) for kind in sizes.kinds]
        return sizes.soft_cap is not None or any(w is not None and w < self.spec.max_seq_len for w in windows)


def family_name(architecture: str) -> str:
    """What transformers calls the family of a class: Llama of LlamaForCausalLM; empty where it is no such name."""
    match = _CLASS.fullmatch(architecture)
    return match.group(1) if match else ""


def facts_of(spec: ModelSpec, quantized: tuple[str, ...] = ()) -> Facts:
    """What our class has to know of a model.

    Raises UnsupportedModelError for a family or kind that the GPU does not run.
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
    return Facts(family=family, mask="full" if sizes.both_ways else "causal", spec=spec, quantized=quantized)


def class_name(facts: Facts) -> str:
    """What config.json calls our class, such as BeiLlamaEmbedding or BeiLlamaForSequenceClassification."""
    name = family_name(facts.spec.architecture)
    return f"Bei{name}{'Embedding' if facts.spec.classifier is None else 'ForSequenceClassification'}"


def class_names() -> Iterator[str]:
    """Every name that `class_name` gives."""
    for name in FAMILIES:
        yield from (f"Bei{name}Embedding", f"Bei{name}ForSequenceClassification")


def write_config(facts: Facts, dtype: str, folder: Path, more: Mapping[str, object] | None = None) -> None:
    """config.json; `more` is what quantisation says of the weights."""
    config = dict(facts.spec.config)
    for unwanted in ("auto_map", "quantization_config"):
        config.pop(unwanted, None)
    heads, keys, size = _attention_sizes(facts)
    config |= {
        "architectures": [class_name(facts)],
        "torch_dtype": dtype,
        "dtype": dtype,
        # TensorRT-LLM sizes its attention by these, and BERT's config.json has neither.
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": size,
        **(more or {}),
        "bei": msgspec.to_builtins(facts),
    }
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))


def read_facts(folder: Path) -> Facts:
    """What our classes read in a folder's config.json."""
    return msgspec.convert(msgspec.json.decode((folder / CONFIG).read_bytes())["bei"], Facts)


def write_weights(transformer: Tensors, checkpoint: Checkpoint, facts: Facts, dtype: str, path: Path) -> None:
    """The transformer's tensors, in `dtype` but for quantised ones and their scales; what stands on top, in f32."""
    entries = [
        Entry.of(name, transformer, None if _stays(name, transformer.dtype(name)) else dtype)
        for name in transformer.names()
        if not name.startswith(_ABOVE) and transformer.dtype(name) in _KEPT
    ]
    write_tensors(path, [*entries, *(Entry.f32(TOP + name, value) for name, value in top_tensors(checkpoint, facts))])


def _stays(name: str, dtype: str) -> bool:
    return dtype in _QUANTIZED or name.endswith(("_scale", "_scale_2"))


def top_tensors(checkpoint: Checkpoint, facts: Facts) -> Iterator[tuple[str, Array]]:
    """f32 tensors of the modules or the head, by the names that our classes give them."""
    classifier = facts.spec.classifier
    if classifier is not None and classifier.answers is not None:
        yield "out.weight", _answer(checkpoint, classifier, facts)
    elif classifier is not None:
        yield from _head(checkpoint, facts)
    for module in facts.spec.modules:
        if isinstance(module, Dense):
            tensors = checkpoint.tensors(module.folder)
            for name in (f"{module.tensor}.weight", f"{module.tensor}.bias", "residual.weight"):
                if name in tensors and (module.bias or not name.endswith(".bias")):
                    yield f"{module.folder}.{name.replace(module.tensor, 'linear', 1)}", tensors.f32(name)


def _head(checkpoint: Checkpoint, facts: Facts) -> Iterator[tuple[str, Array]]:
    """The layers of a sequence classifier. Raises UnsupportedModelError where the family has none."""
    head = heads_of(family_name(facts.spec.architecture)).sequence
    if head is None:
        raise UnsupportedModelError(f"the head of {facts.spec.architecture} is not supported")
    tensors = checkpoint.tensors()
    for layer, name in (("dense", head.dense), ("out", head.out)):
        for part in ("weight", "bias"):
            if name is not None and (part == "weight" or f"{name}.bias" in tensors):
                yield f"{layer}.{part}", tensors.f32(f"{name}.{part}")


def _answer(checkpoint: Checkpoint, classifier: Classifier, facts: Facts) -> Array:
    """f32[1, H]: what gives the logit of "yes" less that of "no"; of a tied model the embeddings stand in."""
    tensors = checkpoint.tensors()
    names = ("lm_head.weight", *(prefix + facts.anchor for prefix in facts.prefixes))
    name = next((name for name in names if name in tensors), None)
    if name is None or classifier.answers is None:
        raise CheckpointError(f"{checkpoint.source} has none of {', '.join(names)}")
    table, (no, yes) = tensors.f32(name), classifier.answers
    return np.ascontiguousarray((table[yes] if no is None else table[yes] - table[no])[None])


def _attention_sizes(facts: Facts) -> tuple[int, int, int]:
    """(heads of queries, heads of keys, size of each)."""
    if facts.is_bert:
        bert = BertSizes.of(BERTS[facts.family], facts.spec.config)
        return bert.num_heads, bert.num_heads, bert.hidden // bert.num_heads
    sizes = DecoderSizes.of(DECODERS[facts.family], facts.spec.config)
    return sizes.num_queries, sizes.num_keys, sizes.head_size
