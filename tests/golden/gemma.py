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
from bei_core.models.kind import Kind
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.tasks import Rows
from bei_core.text.templates import named_template
from tests.golden.cases import CASES, FAMILIES, load_cases

TEMPLATE = '{"template": "A: {query} B: {document}", "tokens": [null, "a"]}'
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


def as_reranker(folder: Path) -> tuple[Checkpoint, ModelSpec, Rows]:
    """The checkpoint as a reranker without a token for no, its spec, and the scores of `LLAMA.ids`, [B, 1]."""
    checkpoint = as_gemma(folder, "GemmaForCausalLM")
    (folder / "modules.json").unlink()
    spec = read_spec(checkpoint, template=named_template(TEMPLATE))
    no, yes = (spec.classifier and spec.classifier.yes_no_ids) or (0, 0)
    assert (spec.kind, no) == (Kind.RERANKER, None)
    words = checkpoint.tensors().f32("model.embed_tokens.weight")
    return checkpoint, spec, LLAMA.raw @ words[[yes]].T
