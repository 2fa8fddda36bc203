"""What sentence-transformers makes of the golden folders, one text at a time, in f32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from scripts.golden.spec import Model

NUM_TEXTS = 24  # of a small case
NUM_EXTREMES = 3  # shortest and longest texts that every case has


@dataclass(frozen=True)
class Expected:
    """Token ids and vectors of some texts, as they are stored."""

    text_rows: npt.NDArray[np.int32]  # [N], positions in mixed.jsonl
    input_ids: npt.NDArray[np.int32]  # [T]
    cu_seqlens: npt.NDArray[np.int32]  # [N + 1]
    vectors: npt.NDArray[np.float32]  # [N, D], what encode returns
    raw: npt.NDArray[np.float32]  # [N, D], before the last Normalize; the vectors again where there is none


def load(folder: Path) -> Model:
    """The folder as a SentenceTransformer, in f32; transformers 5 by itself computes in the dtype of the weights."""
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})


def choose_texts(texts: list[str], number: int) -> list[int]:
    """The texts of case `number`: the extremes, and others so that the cases between them have all."""
    by_length = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))
    chosen = by_length[:NUM_EXTREMES] + by_length[-NUM_EXTREMES:]
    others = [row for row in range(len(texts)) if row not in chosen]
    start = number * (NUM_TEXTS - len(chosen))
    chosen += [others[(start + step) % len(others)] for step in range(NUM_TEXTS - len(chosen))]
    return sorted(chosen)


def expect(model: Model, texts: list[str], rows: list[int]) -> Expected:
    """Ids, vectors and raw vectors of the texts at `rows`."""
    chosen = [texts[row] for row in rows]
    ids, raw = zip(*(_raw(model, text) for text in chosen), strict=True)
    return Expected(
        text_rows=np.array(rows, np.int32),
        input_ids=np.concatenate(ids),
        cu_seqlens=np.cumsum([0, *map(len, ids)], dtype=np.int32),
        vectors=model.encode(chosen, batch_size=1, show_progress_bar=False),
        raw=np.stack(raw),
    )


def save(expected: Expected, path: Path, *, raw: bool = True) -> None:
    """`path`: a safetensors of the fields."""
    save_file({name: value for name, value in vars(expected).items() if raw or name != "raw"}, path)


def prompt_of(model: Model) -> str:
    """The text that encode puts before every input if it is told nothing."""
    return model.prompts[model.default_prompt_name] if model.default_prompt_name else ""


def _raw(model: Model, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Token ids [n] and the vector [D] that a last Normalize would be given."""
    features = model.preprocess([text], prompt=prompt_of(model) or None)
    ids = features["input_ids"][0].numpy().astype(np.int32)
    modules = list(model)
    with torch.inference_mode():
        for module in modules[:-1] if isinstance(modules[-1], Normalize) else modules:
            features = module(features)
    return ids, features["sentence_embedding"][0].numpy()
