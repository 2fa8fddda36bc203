"""Checkpoints with the names that transformers' own classes have for tensors (`save_original_format=False`)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bei_core.checkpoint import Checkpoint, resolve
from tests.golden.cases import GOLDEN

CASES = ("gte-multilingual-ntk-f16", "nomic-plain-prefix", "nomic-topics", "jina-v3-mean-bf16")

# A checkpoint, and values of config.json that are not those of its tensors, which decide: gates, and a table of types.
OVERRULED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nomic-topics", {"activation_function": "silu"}),
    ("gte-multilingual-rerank", {"type_vocab_size": 0}),
)

# transformers 5.23, `conversion_mapping.py`, in this order.
_NAMES = {
    r"^bert\.": "nomic_bert.",
    r"^new\.": "gte.",
    r"emb_ln\b": "embeddings.LayerNorm",
    r"encoder\.layers?\.": "layers.",
    r"(attn|mixer)\.out_proj|attention\.o_proj": "self_attn.o_proj",
    r"\bnorm1|attn_ln": "post_attention_layernorm",
    r"\bnorm2|mlp_ln": "post_mlp_layernorm",
    r"fc11": "up_proj",
    r"fc12": "gate_proj",
    r"(attn|mixer)\.Wqkv|attention\.qkv_proj": "self_attn.{q_proj,k_proj,v_proj}",
    r"up_gate_proj": "{up_proj,gate_proj}",
}


def with_native_names(name: str, folder: Path) -> Checkpoint:
    """The checkpoint, in f32, with joined layers split and all tensors renamed."""
    checkpoint = resolve(str(shutil.copytree(GOLDEN / name, folder)))
    stored = checkpoint.tensors()
    is_gated = any("fc12" in each or "up_gate" in each for each in stored)
    tensors: dict[str, np.ndarray] = {}
    for old in stored:
        new = re.sub(r"fc2\b", "down_proj", old) if is_gated else old
        for pattern, replacement in _NAMES.items():
            new = re.sub(pattern, replacement, new)
        before, _, rest = new.partition("{")
        parts, _, after = rest.partition("}")
        names = [before + part + after for part in parts.split(",")]
        tensors |= zip(names, map(np.ascontiguousarray, np.split(stored.f32(old), len(names))), strict=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return resolve(str(folder))
