"""A checkpoint of Gemma 1 that computes what one of Llama computes, of which the output of transformers is known.

Gemma 1 is Llama with norms that scale by 1 + their weights, and embeddings that are multiplied by the root of H.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bei_core.checkpoint import Checkpoint, resolve
from tests.golden.cases import CASES, FAMILIES, load_cases

LLAMA = next(case for case in (*CASES, *load_cases(*FAMILIES)) if case.name == "llama-3-rope-last")


def as_gemma(folder: Path, architecture: str = "GemmaModel") -> Checkpoint:
    """The checkpoint, in f32. Its activation is that of `hidden_act`, and not the one of `hidden_activation`."""
    shutil.copytree(LLAMA.folder, folder)
    stored = resolve(str(folder)).tensors()
    tensors = {name: stored.f32(name) - np.float32("norm" in name) for name in stored}
    tensors["embed_tokens.weight"] /= np.float32(LLAMA.dimension**0.5)
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    own = {"hidden_activation": "gelu", "tie_word_embeddings": True}
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": [architecture], "model_type": "gemma", **own})
    )
    return resolve(str(folder))
