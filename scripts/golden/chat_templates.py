"""Computes CrossEncoder's outputs for the folders of `tests/golden/chat_templates.py`, in f32, each pair alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder

from scripts.golden.expected import Arrays, is_same
from scripts.golden.sentence import EAGER
from tests.golden.chat_templates import EXPECTED, FOLDERS, INSTRUCTION, PAIRS


def write() -> None:
    """Writes the arrays, unless they differ from the stored ones only by rounding."""
    arrays: Arrays = {}
    for name, folder in FOLDERS.items():
        with tempfile.TemporaryDirectory() as temporary:
            path = folder.write(Path(temporary) / name)
            model = CrossEncoder(str(path), device="cpu", local_files_only=True, model_kwargs=EAGER)
            for key, prompt in (("plain", model.prompts.get(model.default_prompt_name or "")), ("asked", INSTRUCTION)):
                arrays |= {f"{name}:{key}:{what}": value for what, value in compute(model, prompt).items()}
    if not EXPECTED.is_file() or not is_same(arrays, load_file(EXPECTED)):
        save_file(arrays, EXPECTED)


def compute(model: CrossEncoder, prompt: str | None) -> Arrays:
    """Returns the token ids i32[T] of all pairs, joined, and the scores f32[N] of the pairs with a prompt."""
    ids = [model.preprocess([pair], prompt=prompt)["input_ids"].flatten().numpy() for pair in PAIRS]
    scores = [model.predict([pair], prompt=prompt)[0] for pair in PAIRS]
    return {"ids": np.concatenate(ids).astype(np.int32), "scores": np.array(scores, np.float32)}
