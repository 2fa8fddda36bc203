"""Golden encoders that give one vector a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from scripts.golden import expect
from scripts.golden.encoders_audit import Rows, audit, check_ids, is_close_in_direction, likeness
from scripts.golden.encoders_folder import EncoderSpec, readable, write_folder
from scripts.golden.spec import Model

MAX_LIKENESS = 0.9  # mean cosine between different texts


def make_embedder(root: Path, spec: EncoderSpec, texts: list[str], number: int) -> dict[str, object]:
    """The line of the index, after the folder and its expectations are written and audited."""
    folder = root / spec.name
    write_folder(folder, spec, texts)
    with readable(folder) as path:
        model = _load(path)
    expected = expect.expect(model, texts, expect.choose_texts(texts, number))
    chosen = [texts[row] for row in expected.text_rows]
    expect.save(expected, folder / "expected.safetensors")
    prompt = expect.prompt_of(model)
    check_ids(folder, [(prompt + text,) for text in chosen], expected, model.max_seq_length)
    if (like := likeness(expected.vectors)) > MAX_LIKENESS:
        raise AssertionError(f"{spec.name}: different texts look alike, mean cosine {like:.3f}")

    def compute(of_model: Model) -> Rows:
        rows: Rows = of_model.encode(chosen, batch_size=1, show_progress_bar=False).astype(np.float32)
        return rows

    line = audit(folder, spec, _load, compute, expected.vectors, is_close_in_direction)
    print(f"{spec.name:36} likeness {like:.2f}, {line}", flush=True)
    return {
        "name": spec.name,
        "kind": "embedding",
        "architecture": spec.architecture,
        "dimension": expected.vectors.shape[1],
        "max_seq_length": model.max_seq_length,
        "prompt": prompt,
        "covers": spec.covers,
    }


def _load(folder: Path) -> Model:
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
