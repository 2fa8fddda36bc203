"""Writes the engine folder for torch or TensorRT-LLM: a checkpoint in Hugging Face's layout, with a class of BEI.

    config.json         the model's own, with BEI's model class in `architectures` and `Facts` under `bei`
    model.safetensors   the transformer's tensors under their original names; tensors of modules or head in f32, with
                        the prefix `bei.`

This module does not need torch, so any machine can build a folder that is not quantised.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy.typing as npt

from bei_core.checkpoint import Checkpoint, Tensors
from bei_core.checkpoint.folder import COLBERT_LINEAR, SPARSE_LINEAR
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.tensorfile import Entry, write_tensors
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.families import FAMILIES, Family, family_name, family_of, with_class_defaults
from bei_core.models.head_tensors import find_head_tensors, find_yes_no_row, head_of
from bei_core.models.sizes import Sizes
from bei_core.models.spec import ModelSpec

Array = npt.NDArray[Any]

# PRECISIONS: the precision of the weights for each value of the setting `dtype`. DTYPES: the dtype in which layers
# compute for each precision.
PRECISIONS = {"auto": "bf16", "bfloat16": "bf16", "float16": "f16", "float32": "f32"}
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "fp8": "bfloat16"}

# Files that BEI does not read, but other tools do: trtllm-serve, transformers, sentence-transformers.
_COMPANION_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
)

_UNWANTED = ("auto_map", "quantization_config")  # keys of config.json

HEAD_PREFIX = "bei."  # of the tensors of modules and heads
WEIGHTS, CONFIG = "model.safetensors", "config.json"

# Prefixes of tensors that are not copied with the transformer: of heads, because `head_tensors` returns those that the
# engine uses, and of T5's decoder.
_HEAD_TENSORS = (
    *("lm_head.", "cls.", "generator_", "vocab_", "classifier.", "pre_classifier.", "score.", "head.", "decoder."),
)

# The `model_type` for config.json, by the name of the family, else of its layout. TensorRT-LLM reads config.json with
# transformers, which must know the type; BEI's class reads the sizes itself. The type "qwen3" is for models whose
# hidden size is not a multiple of the number of heads, which "llama" refuses.
_MODEL_TYPES = {"bert": "roberta", "decoder": "llama", "qwen3_bidirectional": "qwen3"}

_FP8 = "F8_E4M3"
_FLOAT_DTYPES = ("BF16", "F16", "F32", "F64", _FP8)  # tensors of other dtypes are buffers, which the engine computes


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What BEI's model class needs to know about a model; config.json has it under `bei`."""

    spec: ModelSpec
    quantized: tuple[str, ...] = ()  # "attention", "mlp": the parts whose linear layers are quantised

    @property
    def of_family(self) -> Family:
        """What all models of the family have in common."""
        return family_of(self.spec.architecture)

    @property
    def sizes(self) -> Sizes:
        """Sizes and options of the transformer."""
        return self.of_family.layout.sizes(self.spec.config)

    @property
    def mask(self) -> Literal["full", "causal"]:
        """Which tokens of its sequence a token attends to: all, or only itself and those before it."""
        return "causal" if self.of_family.layout.is_causal(self.spec.config) else "full"


def facts_of(spec: ModelSpec, quantized: tuple[str, ...] = ()) -> Facts:
    """Returns the facts of a model.

    Raises UnsupportedModelError if the model classes do not support the family, the head or a value of config.json.
    """
    family = FAMILIES.get(family_name(spec.architecture))
    if family is None or family.is_static:
        known = ", ".join(name for name, family in FAMILIES.items() if not family.is_static)
        raise UnsupportedModelError(
            f"the torch engine does not run {spec.architecture}; it runs {known}. The CPU engine may: --engine openvino"
        )
    head_of(spec)
    family.layout.sizes(spec.config)
    return Facts(spec=spec, quantized=quantized)


def class_name(facts: Facts) -> str:
    """Returns the class name for config.json, such as BeiLlamaEmbedding or BeiLlamaForSequenceClassification."""
    architecture = facts.spec.architecture
    name = "Bert" if architecture in FAMILIES else family_name(architecture)  # the classes of other code are BertModels
    return f"Bei{name}{'Embedding' if facts.spec.classifier is None else 'ForSequenceClassification'}"


def write_folder(
    folder: Path,
    checkpoint: Checkpoint,
    facts: Facts,
    precision: str,
    replaced: Mapping[str, Entry] | None = None,
    more: Mapping[str, object] | None = None,
) -> None:
    """Writes the files of an engine: the transformer's tensors in "bf16", "f16" or "f32", modules and head in f32.

    A quantised model gives `replaced`, tensors that replace those of the checkpoint or are added to them, and `more`,
    further keys for config.json. Tensors that are quantised in the checkpoint, and scales, keep their dtype. Raises
    CheckpointError as `check_weights`.
    """
    tensors, entries = checkpoint.tensors(), dict[str, Entry]()
    check_weights(tensors)
    config = {**_config(facts, DTYPES[precision]), **(more or {})}
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
    for name in tensors.names():
        if not name.startswith(_HEAD_TENSORS) and tensors.dtype(name) in _FLOAT_DTYPES:
            is_kept = tensors.dtype(name) == _FP8 or name.endswith("_scale")
            entries[name] = Entry.of(name, tensors, None if is_kept else precision.upper())
    heads = [Entry.f32(HEAD_PREFIX + name, value) for name, value in head_tensors(checkpoint, facts)]
    write_tensors(folder / WEIGHTS, [*(entries | dict(replaced or {})).values(), *heads])
    _copy_companions(checkpoint, folder)


def check_weights(tensors: Tensors) -> None:
    """Raises CheckpointError for a quantised weight of the transformer, unless it is in fp8 (e4m3) with one scale."""
    for name in tensors.names():
        scale, dtype = f"{name}_scale", tensors.dtype(name)
        is_scaled = scale in tensors and tensors.raw(scale).size == 1
        is_read = is_scaled if dtype == _FP8 else dtype in _FLOAT_DTYPES
        if not is_read and name.endswith(".weight") and not name.startswith(_HEAD_TENSORS):
            raise CheckpointError(
                f"{name} is {dtype}; of quantised weights, the engines for GPUs read only {_FP8} with one number as "
                f"{scale}; use the checkpoint that is not quantised"
            )


def _copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Copies the files that other tools read, and config.json of each module of sentence-transformers."""
    modules = checkpoint.read_json("modules.json", required=False) or ()
    names = [path.name for pattern in _COMPANION_FILES for path in checkpoint.folder.glob(pattern)]
    names += [f"{entry['path']}/config.json" for entry in modules if entry.get("path")]
    for name in names:
        if (checkpoint.folder / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)


def _config(facts: Facts, dtype: str) -> dict[str, object]:
    """Returns the content of config.json."""
    config = {name: facts.spec.config[name] for name in facts.spec.config if name not in _UNWANTED}
    config |= {"architectures": [class_name(facts)], "torch_dtype": dtype, "dtype": dtype}
    family, layout = facts.of_family, facts.of_family.layout.name
    if layout in _MODEL_TYPES and (family.has_own_code or "model_type" not in config):
        config["model_type"] = _MODEL_TYPES.get(family.name, _MODEL_TYPES[layout])
    if layout in {"bert", "decoder"}:
        # TensorRT-LLM's Attention reads these three keys. BERT's own config.json only has the first one.
        heads = facts.sizes.heads
        config |= {"num_attention_heads": heads.num_heads, "num_key_value_heads": heads.num_kv_heads}
        config["head_dim"] = heads.head_size
    return {**config, "bei": msgspec.to_builtins(facts)}


def read_facts(folder: Path) -> Facts:
    """Returns the facts that config.json of an engine folder contains."""
    facts = msgspec.convert(msgspec.json.decode((folder / CONFIG).read_bytes())["bei"], Facts)
    spec = facts.spec  # of an older version, its config may lack values of the class
    config = with_class_defaults(spec.architecture, spec.config)
    return msgspec.structs.replace(facts, spec=msgspec.structs.replace(spec, config=config))


def head_tensors(checkpoint: Checkpoint, facts: Facts) -> Iterator[tuple[str, Array]]:
    """Yields (name, f32 tensor) for each tensor of the modules or head, with the names that `models/heads` loads."""
    spec = facts.spec
    for name, (tensors, stored) in find_head_tensors(checkpoint, spec).items():
        yield name, tensors.f32(stored)
    if (row := find_yes_no_row(checkpoint, spec)) is not None:
        yield "out.weight", row
    for file, part in product((COLBERT_LINEAR, SPARSE_LINEAR), ("weight", "bias")) if spec.bge_m3 is not None else ():
        yield f"{file}.{part}", checkpoint.pickled(file).f32(part)


def attention_of(facts: Facts) -> dict[str, AttentionSizes]:
    """Returns the attention of each type of layer. It has no window if that would cover the longest sequence."""
    sizes, names = facts.sizes, facts.of_family.layout.names[0]
    plain = AttentionSizes(
        hidden=sizes.hidden,
        num_heads=sizes.heads.num_heads,
        num_kv_heads=sizes.heads.num_kv_heads,
        head_size=sizes.heads.head_size,
        scale=sizes.heads.scale,
        bias=sizes.qkv_bias,
        out_bias=sizes.out_bias,
        causal=sizes.causal,
        eps=sizes.eps if names.qk_norms else None,
        offset=sizes.norm_offset,
        soft_cap=sizes.soft_cap,
    )
    windows = {layer_type: sizes.window_of(layer_type) for layer_type in dict.fromkeys(sizes.layer_types)}
    return {
        layer_type: replace(plain, window=None if window is None or window >= facts.spec.max_seq_len else window)
        for layer_type, window in windows.items()
    }
