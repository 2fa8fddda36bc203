"""Checkpoints with the word embeddings and another matrix for them: which one transformers 5 takes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bei_core.checkpoint import Checkpoint, resolve
from tests.golden.cases import GOLDEN


@dataclass(frozen=True)
class Tied:
    """A checkpoint, and two tensors that its class ties to each other if the file has one of them."""

    name: str
    source: str  # the tensor in the checkpoint
    target: str  # the one that is used if the file has both


CASES = (
    Tied("splade-bert", "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    Tied("splade-bert", "cls.predictions.bias", "cls.predictions.decoder.bias"),
    Tied("splade-deberta-v3", "cls.predictions.bias", "cls.predictions.decoder.bias"),
    Tied("sentence-t5-dense-f16", "shared.weight", "encoder.embed_tokens.weight"),
)


def changed(name: str, folder: Path, *, without: str = "", **values: object) -> Checkpoint:
    """The checkpoint with other values in config.json, and without one of its keys."""
    shutil.copytree(GOLDEN / name, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    config.pop(without, None)
    path.write_text(json.dumps(config))
    return resolve(str(folder))


def with_both(case: Tied, folder: Path) -> Checkpoint:
    """The checkpoint with both tensors, which differ."""
    shutil.copytree(GOLDEN / case.name, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[case.target] = np.flip(tensors[case.source], axis=0).copy()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return resolve(str(folder))
