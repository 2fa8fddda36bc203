"""The tiny bge-m3 as its authors publish it: files of sentence-transformers, and two linear layers beside them.

`scripts/golden/bge_m3.py` writes the layers by torch.save, and computes what FlagEmbedding makes of the folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.golden.checkpoints import DATA, made
from tests.golden.texts import mixed_texts

FOLDER = made() / "BAAI/bge-m3"  # without the two layers
MAX_LENGTH = 96  # its max_seq_length
SPARSE, COLBERT = DATA / "bge_m3" / "sparse_linear.pt", DATA / "bge_m3" / "colbert_linear.pt"
EXPECTED = DATA / "expected" / "bge_m3.safetensors"

TEXTS = (
    *mixed_texts()[:24],
    "the same words, the same words, the same words",
    "\u2603 \u2603 a sign that is not in the vocabulary, twice",
    "long " * 200,
    ".",
)


def write(folder: Path) -> Path:
    """Writes the folder; returns it."""
    shutil.copytree(FOLDER, folder)
    for path in (SPARSE, COLBERT):
        shutil.copyfile(path, folder / path.name)
    return folder
