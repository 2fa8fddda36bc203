"""A decoder's checkpoint: config.json as its family publishes it, tokenizer, random weights and modules."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from scripts.golden.decoders_vocabulary import DecoderTokenizer, tokenizer_config, train
from scripts.golden.folder import write_json, write_modules
from scripts.golden.spec import CaseSpec, Layout, Vocab
from scripts.golden.weights import Scales, Tensors, draw, save

CAUSAL_LM = "ForCausalLM"
# The matrices spread attention logits by more than one, so that a wrong mask or position moves every vector.
MATRICES: Scales = (
    (r"(bias)$", 0.0, 0.4, False),
    (r"(q_proj|k_proj)\.weight$", 0.0, 1.6, True),
    (r"o_proj\.weight$", 0.0, 1.8, True),
    (r"down_proj\.weight$", 0.0, 2.0, True),
    (r"score\.weight$", 0.0, 2.0, True),
    (r"lm_head\.weight$", 0.0, 1.5, True),
)
SCALES: Scales = (
    (r"norm\.weight$", 1.0, 0.25, False),
    *MATRICES,
    (r"embed_tokens", 0.0, 1.0, False),
    (r"", 0.0, 1.2, True),
)
# Gemma's RMSNorm scales by 1 + weight, and its embeddings are scaled up by the root of the hidden size.
GEMMA_SCALES: Scales = (
    (r"norm\.weight$", 0.1, 0.3, False),
    *MATRICES,
    (r"embed_tokens", 0.0, 1.0, True),
    (r"", 0.0, 1.2, True),
)

COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "use_cache": True,
}
SWIGLU = COMMON | {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
QWEN = SWIGLU | {"max_window_layers": 28, "rope_theta": 1000000.0, "sliding_window": None, "use_sliding_window": False}
GEMMA = COMMON | {
    "attention_bias": False,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 16,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {"model_type": "llama", **SWIGLU, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    | {"rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False},
    "Mistral": {"model_type": "mistral", **SWIGLU, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    "Qwen2": {"model_type": "qwen2", **QWEN, "tie_word_embeddings": False},
    "Qwen3": {"model_type": "qwen3", **QWEN, "attention_bias": False, "head_dim": 8, "rope_scaling": None}
    | {"tie_word_embeddings": True},
    "Gemma2": {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    | {"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"},
    "Gemma3Text": {"model_type": "gemma3_text", **GEMMA, "attn_logit_softcapping": None, "rope_scaling": None}
    | {"final_logit_softcapping": None, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0},
}
OLD_ROPE = ("rope_theta", "rope_scaling", "rope_local_base_freq")  # what rope_parameters took the place of
ANY_TOKENIZER = DecoderTokenizer(Vocab.QWEN, 299)


@dataclass(frozen=True)
class DecoderSpec(CaseSpec):
    """One golden decoder; `architecture` is the class that computes it, as FamilyModel, FamilyForCausalLM etc."""

    tokenizer: DecoderTokenizer = ANY_TOKENIZER
    published_as: str | None = None  # `architectures` of config.json, where it is another class
    mistakes: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> what config.json then says
    template: str = ""  # of a causal reranker, with {query} and {document}

    @property
    def family(self) -> str:
        """The key of CONFIGS."""
        return next(name for name in CONFIGS if self.architecture.startswith(name))

    @property
    def is_causal_lm(self) -> bool:
        """Whether the output is the logits of the next token."""
        return self.architecture.endswith(CAUSAL_LM)


def write_folder(folder: Path, spec: DecoderSpec, texts: list[str]) -> None:
    """The whole checkpoint of `spec`, in place of whatever `folder` held."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = train(spec.tokenizer, texts)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_config(spec.tokenizer))
    write_json(folder / "config.json", _config(spec, tokenizer))
    _write_model(folder, spec)
    write_modules(folder, spec)


def _config(spec: DecoderSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    roles = spec.tokenizer.roles
    config = {"architectures": [spec.published_as or spec.architecture]} | CONFIGS[spec.family]
    config |= {"vocab_size": spec.tokenizer.size}
    config |= {f"{role}_token_id": tokenizer.token_to_id(roles[role]) for role in ("bos", "eos") if role in roles}
    if spec.tokenizer.kind is Vocab.QWEN:
        config["bos_token_id"] = config["eos_token_id"]  # published so, though nothing prepends it
    if spec.is_classifier or spec.tokenizer.kind is Vocab.GEMMA:
        config["pad_token_id"] = tokenizer.token_to_id(roles["pad"])
    dtype = "dtype" if spec.layout is Layout.MODERN else "torch_dtype"  # renamed in transformers 5
    config |= {dtype: spec.storage.dtype} | spec.config
    old = OLD_ROPE if "rope_parameters" in config else ()
    return {key: value for key, value in config.items() if key not in old}


def _write_model(folder: Path, spec: DecoderSpec) -> None:
    config = AutoConfig.from_pretrained(folder)
    of_class = AutoModelForSequenceClassification if spec.is_classifier else AutoModel
    with torch.device("meta"):
        model = (AutoModelForCausalLM if spec.is_causal_lm else of_class).from_config(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if spec.is_causal_lm and config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    scales = GEMMA_SCALES if spec.family.startswith("Gemma") else SCALES
    tensors: Tensors = {
        spec.storage.prefix + name: draw(spec.name, name, shape, scales) for name, shape in shapes.items()
    }
    dtype = getattr(torch, spec.storage.dtype)
    save(folder, {name: value.to(dtype) for name, value in tensors.items()}, spec.storage.shards)
