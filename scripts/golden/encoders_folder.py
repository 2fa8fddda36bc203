"""An encoder's checkpoint as its family publishes it, and the same checkpoint as transformers 5 reads it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from scripts.golden.encoders_config import CONFIGS, gte_config, nomic_config
from scripts.golden.folder import write_json, write_modules
from scripts.golden.spec import CaseSpec, Layout, Vocab
from scripts.golden.vocabulary import NAMES, tokenizer_config, train
from scripts.golden.weights import Scales, Shapes, Tensors, draw, save

# Attention logits spread by more than one, so that a wrong mask or position moves every vector.
SCALES: Scales = (
    (r"(norm\d?|_ln)\.weight$", 1.0, 0.25, False),
    (r"(norm\d?|_ln)\.bias$", 0.0, 0.1, False),
    # Of a masked language model: as low as in a SPLADE model, so that few words have a weight above zero.
    (r"^(cls\.predictions|lm_head|vocab_projector)\.bias$", -12.0, 3.0, False),
    (r"bias$", 0.0, 0.2, False),
    (r"word_embeddings|tok_embeddings", 0.0, 1.5, False),
    (r"(position|token_type)_embeddings", 0.0, 0.5, False),
    (r"rel_embeddings", 0.0, 1.0, False),
    (r"conv\.conv\.weight$", 0.0, 0.12, False),
    (r"(query|key|query_proj|key_proj|q_lin|k_lin|qkv_proj)\.weight$", 0.0, 1.5, True),
    (r"(Wqkv|mlp\.Wo)\.weight$", 0.0, 1.1, True),  # before whose layers there is a norm, so that errors add up
    (r"(fc2|down_proj|lin2)\.weight$|(?<!attention\.)output\.dense\.weight$", 0.0, 2.0, True),
    (r"^(classifier|classifier\.out_proj|linear)\.weight$", 0.0, 0.9, True),
    (r"", 0.0, 1.2, True),
)
# Of a class whose output that is, ELECTRA's and ModernBERT's names for it too.
MASKED_LM_SCALES: Scales = ((r"^(generator_lm_head|decoder)\.bias$", -12.0, 3.0, False), *SCALES)
# Of the decoder of a masked language model: the word embeddings and the bias beside it, under second names.
TIED = re.compile(
    r"(cls\.predictions|lm_head)\.decoder\.(weight|bias)$|(vocab_projector|generator_lm_head|^decoder)\.weight$"
)


@dataclass(frozen=True)
class EncoderSpec(CaseSpec):
    """One golden encoder; `architecture` is the class that computes it, by its published name."""

    published_as: tuple[str, ...] = ()  # `architectures` of config.json, where it is another class
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)  # published tensors that the architecture ignores
    copies: dict[str, str] = field(default_factory=dict)  # second name of a tensor -> the first
    mistakes: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> what transformers' config then says
    silenced: tuple[str, ...] = ()  # regular expressions of parameters that matter: without each, the answer changes
    aggregates: bool = False  # a token classifier whose entities are stored too

    @property
    def family(self) -> str:
        """The key of CONFIGS."""
        return next(name for name in CONFIGS if self.architecture.startswith(name))


def write_folder(folder: Path, spec: EncoderSpec, texts: list[str]) -> None:
    """The whole checkpoint of `spec`, in place of whatever `folder` held."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = train(spec.tokenizer, texts)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_config(spec.tokenizer))
    config = _config(spec, tokenizer)
    write_json(folder / "config.json", config)
    _write_model(folder, spec, config)
    write_modules(folder, spec)


def _config(spec: EncoderSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {role: tokenizer.token_to_id(token) for role, token in NAMES[spec.tokenizer.kind].items()}
    config = {"architectures": list(spec.published_as or (spec.architecture,))} | CONFIGS[spec.family]
    config |= {"vocab_size": spec.tokenizer.size, "pad_token_id": ids["pad"]}
    if spec.tokenizer.kind is not Vocab.WORDPIECE:
        config |= {"bos_token_id": ids["cls"], "eos_token_id": ids["sep"]}
    if spec.family == "ModernBert":
        config |= {f"{role}_token_id": ids[role] for role in ("cls", "sep")}
    dtype = "dtype" if spec.layout is Layout.MODERN else "torch_dtype"  # renamed in transformers 5
    return config | {dtype: spec.storage.dtype} | spec.config


def _write_model(folder: Path, spec: EncoderSpec, config: dict[str, Any]) -> None:
    of_family = {"NomicBert": _nomic_shapes, "New": _new_shapes}.get(spec.family)
    shapes = of_family(spec, config) if of_family else _shapes(folder, spec)
    scales = MASKED_LM_SCALES if spec.architecture.endswith("ForMaskedLM") else SCALES
    tensors: Tensors = {}
    for name, shape in {**shapes, **spec.extra}.items():
        tensors[name] = draw(spec.name, name, shape, scales).to(getattr(torch, spec.storage.dtype))
    tensors |= {name: tensors[first].clone() for name, first in spec.copies.items()}
    save(folder, tensors, spec.storage.shards)


def _shapes(folder: Path, spec: EncoderSpec) -> Shapes:
    """Name -> shape where transformers' own class has the published names."""
    of_class = getattr(transformers, spec.architecture)
    with torch.device("meta"):
        model = of_class(transformers.AutoConfig.from_pretrained(folder))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if not TIED.search(name)}
    unwanted = () if spec.storage.pooler or spec.is_classifier else ("pooler.",)
    return {spec.storage.prefix + name: shape for name, shape in shapes.items() if not name.startswith(unwanted)}


def _nomic_shapes(spec: EncoderSpec, config: dict[str, Any]) -> Shapes:
    width, inner = config["n_embd"], config["n_inner"]
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    } | _norm("emb_ln", width)
    for layer in range(config["n_layer"]):
        prefix = f"encoder.layers.{layer}"
        shapes |= {f"{prefix}.attn.Wqkv.weight": (3 * width, width), f"{prefix}.attn.out_proj.weight": (width, width)}
        shapes |= {f"{prefix}.mlp.{name}.weight": (inner, width) for name in ("fc11", "fc12")}
        shapes[f"{prefix}.mlp.fc2.weight"] = (width, inner)
        shapes |= _norm(f"{prefix}.norm1", width) | _norm(f"{prefix}.norm2", width)
    if spec.is_classifier:
        shapes |= _linear("pooler.dense", width, width)
    return _prefixed(spec, shapes) | _classifier_shapes(spec, config, width)


def _new_shapes(spec: EncoderSpec, config: dict[str, Any]) -> Shapes:
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {"embeddings.word_embeddings.weight": (config["vocab_size"], width)}
    if config["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], width)
    shapes |= _norm("embeddings.LayerNorm", width)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        shapes |= _linear(f"{prefix}.attention.qkv_proj", 3 * width, width)
        shapes |= _linear(f"{prefix}.attention.o_proj", width, width)
        shapes[f"{prefix}.mlp.up_gate_proj.weight"] = (2 * inner, width)
        shapes |= _linear(f"{prefix}.mlp.down_proj", width, inner)
        shapes |= _norm(f"{prefix}.attn_ln", width) | _norm(f"{prefix}.mlp_ln", width)
    if spec.is_classifier or spec.storage.pooler:
        shapes |= _linear("pooler.dense", width, width)
    return _prefixed(spec, shapes) | _classifier_shapes(spec, config, width)


def _prefixed(spec: EncoderSpec, shapes: Shapes) -> Shapes:
    return {spec.storage.prefix + name: shape for name, shape in shapes.items()}


def _classifier_shapes(spec: EncoderSpec, config: dict[str, Any], width: int) -> Shapes:
    """Of texts or of tokens."""
    return _linear("classifier", len(config["id2label"]), width) if spec.architecture.endswith("Classification") else {}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, out_features: int, in_features: int) -> Shapes:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


@contextmanager
def readable(folder: Path, changes: dict[str, Any] | None = None) -> Iterator[Path]:
    """`folder` itself, or a copy in the form that transformers reads by itself, with `changes` to its config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    translate = {"nomic_bert": nomic_config, "new": gte_config}.get(config["model_type"])
    if translate is None and not changes:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(folder, copy)
        translated = translate(config) if translate else config
        write_json(copy / "config.json", translated | (changes or {}))
        if translate:
            has_head = "Classification" in translated["architectures"][0]
            _rename(copy / "model.safetensors", f"{translated['model_type']}." if has_head else "")
        yield copy


def _rename(path: Path, to: str) -> None:
    """The published prefix becomes what transformers' class calls its encoder; it renames all else as it loads."""
    tensors = load_file(path)
    prefix = re.compile(r"^(new|bert)\.")
    save_file({prefix.sub(to, name): value for name, value in tensors.items()}, path, {"format": "pt"})
