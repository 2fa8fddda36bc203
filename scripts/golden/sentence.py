"""Computes what sentence-transformers makes of the folders in `tests/golden/sentence_heads.py`, in f32, one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

from scripts.golden.expected import Arrays, is_same
from tests.golden.sentence import EXPECTED, PAIRS, TEXTS, Folder
from tests.golden.sentence_heads import FOLDERS

EAGER = {"dtype": torch.float32, "attn_implementation": "eager"}


def write() -> None:
    """Writes the arrays, unless they differ from the stored ones only by rounding."""
    arrays: Arrays = {}
    for name, folder in FOLDERS.items():
        with tempfile.TemporaryDirectory() as temporary:
            found = compute(folder, folder.write(Path(temporary)))
        arrays |= {f"{name}:{key}": value for key, value in found.items()}
    if not EXPECTED.is_file() or not is_same(arrays, load_file(EXPECTED)):
        save_file(arrays, EXPECTED)


def compute(folder: Folder, path: Path) -> Arrays:
    """Returns the vectors f32[N, D] of the texts and their token ids, or the scores f32[N] of the pairs."""
    if folder.kind == "cross-encoder":
        model = CrossEncoder(str(path), device="cpu", local_files_only=True, model_kwargs=EAGER)
        return {"scores": np.array([model.predict([pair])[0] for pair in PAIRS], np.float32)}
    of_class: Any = SparseEncoder if folder.kind == "sparse" else SentenceTransformer
    model = of_class(str(path), device="cpu", local_files_only=True, model_kwargs=EAGER)
    rows = [model.encode([text], show_progress_bar=False, convert_to_tensor=True) for text in TEXTS]
    vectors = torch.cat([row.to_dense() if row.is_sparse else row for row in rows]).numpy().astype(np.float32)
    prompt = model.prompts[model.default_prompt_name] if model.default_prompt_name else None
    ids = [model.preprocess([text], prompt=prompt)["input_ids"].flatten().numpy() for text in TEXTS]
    found = {"vectors": vectors, "ids": np.concatenate(ids).astype(np.int32)}
    if folder.kind == "sparse":
        kept = np.nonzero(vectors)
        found = {"ids": found["ids"], "at": np.ravel_multi_index(kept, vectors.shape).astype(np.int32)}
        found["values"] = vectors[kept]
    return found
