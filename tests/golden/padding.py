"""Texts that contain the padding token, which has no position in the families whose positions begin after its id."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.tasks import Tokens
from tests.golden.cases import GOLDEN, Ids

# Checkpoints of each class, and the id of their padding token. MPNet's class takes 1, whatever config.json says.
PADDING_IDS = {
    "xlmr-plain-mean": 1,
    "roberta-mean-normalize": 1,
    "roberta-weightedmean-pad5": 5,
    "camembert-plain-prefix-f16": 1,
    "xlmr-flash-mean-tanh": 4,
    "mpnet-mean-normalize": 1,
    "mpnet-topics-pad5-f16": 1,
}
SPARE = 60  # a word that is in no text


def text(padding_id: int) -> Ids:
    """A text with the padding token at its beginning, inside of it and at its end."""
    words = np.array([0, 31, 77, 0, 45, 0, 0, 52, 91, 33, 0], np.int32)
    return np.where(words == 0, padding_id, words).astype(np.int32)


def tokens(ids: Ids) -> Tokens:
    return Tokens(ids, np.zeros_like(ids))


def position_rows(ids: Ids, padding_id: int) -> Ids:
    """The row of the position table for each token, by transformers' `create_position_ids_from_input_ids`."""
    has_position = (ids != padding_id).astype(np.int32)
    rows: Ids = np.cumsum(has_position, dtype=np.int32) * has_position + padding_id
    return rows


def moved(name: str, folder: Path) -> Checkpoint:
    """The checkpoint with other weights, for which the text has the same vectors without its padding tokens.

    The word SPARE has the padding token's embedding, and the position table has the rows in the order of the text.
    """
    shutil.copytree(GOLDEN / name, folder)
    tensors, padding_id = load_file(folder / "model.safetensors"), PADDING_IDS[name]
    words, positions = (
        next(value for key, value in tensors.items() if key.endswith(f"{part}_embeddings.weight"))
        for part in ("word", "position")
    )
    words[SPARE] = words[padding_id]
    rows = position_rows(text(padding_id), padding_id)
    positions[padding_id + 1 : padding_id + 1 + len(rows)] = positions[rows].copy()
    save_file(tensors, folder / "model.safetensors")
    return resolve(str(folder))


def without_padding(ids: Ids, padding_id: int) -> Ids:
    """The text for the checkpoint of `moved`."""
    return np.where(ids == padding_id, SPARE, ids).astype(np.int32)
