"""Proof that a golden is worth keeping: an exact engine passes it, a bf16 one can, and each likely mistake fails it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import Tokenizer, normalizers

from scripts.golden.expect import Expected, prompt_of
from scripts.golden.mistakes import Mistake, Reach, mistakes
from scripts.golden.spec import CaseSpec, Model
from tests.golden.tolerance import BF16, F32, Figures, Tolerance, compare

MAX_LIKENESS = 0.9  # mean cosine between different texts
MAX_BYTES = 160_000  # of a case


def audit(folder: Path, spec: CaseSpec, model: Model, expected: Expected, texts: list[str]) -> str:
    """One line about the case for people. Raises AssertionError if the case proves too little or cannot be met."""
    chosen = [texts[row] for row in expected.text_rows]
    if (likeness := _likeness(expected.vectors)) > MAX_LIKENESS:
        raise AssertionError(f"{spec.name}: different texts look alike, mean cosine {likeness:.3f}")
    if (size := sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())) > MAX_BYTES:
        raise AssertionError(f"{spec.name}: {size} bytes")
    _check_ids(folder, spec, model, expected, chosen)
    compare(_encode(copy.deepcopy(model).double(), chosen), expected.vectors, F32)
    in_bf16 = compare(_encode_bf16(model, chosen), expected.vectors, BF16)
    caught = [_check_caught(name, mistake, model, expected, chosen) for name, mistake in mistakes(spec, model).items()]
    return f"{size:6} bytes, likeness {likeness:.2f}, bf16 {_show(in_bf16)}, {len(caught)} mistakes caught"


def _encode(model: Model, texts: list[str]) -> npt.NDArray[np.float32]:
    rows = model.encode(texts, batch_size=1, show_progress_bar=False, convert_to_tensor=True)
    result: npt.NDArray[np.float32] = rows.float().numpy()
    return result


def _encode_bf16(model: Model, texts: list[str]) -> npt.NDArray[np.float32]:
    """Matrix products in bf16, and the last division in f32, without which no bf16 engine could keep to the norm."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = _encode(model, texts)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if isinstance(list(model)[-1], Normalize) else rows


def _likeness(vectors: npt.NDArray[np.float32]) -> float:
    """The mean cosine between different rows."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())


def _check_ids(folder: Path, spec: CaseSpec, model: Model, expected: Expected, texts: list[str]) -> None:
    """Raises unless tokenizer.json alone, with the prompt and the length put in by hand, gives the expected ids."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_seq_length)
    if spec.do_lower_case:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), tokenizer.normalizer])
    for row, text in enumerate(texts):
        start, end = expected.cu_seqlens[row : row + 2]
        if tokenizer.encode(prompt_of(model) + text).ids != expected.input_ids[start:end].tolist():
            raise AssertionError(f"{spec.name}: transformers and tokenizer.json differ on {text!r}")


def _check_caught(name: str, mistake: tuple[Mistake, Reach], model: Model, expected: Expected, texts: list[str]) -> str:
    """`name`. Raises if an engine that makes this mistake would pass."""
    make, reach = mistake
    wrong = copy.deepcopy(model)
    make(wrong)
    vectors = _encode(wrong, texts)
    for tolerance in (F32, BF16) if reach is Reach.EVERY_PRECISION else (F32,):
        if (figures := _passes(vectors, expected.vectors, tolerance)) is not None:
            raise AssertionError(f"{name} would pass as {tolerance.name}: {_show(figures)}")
    return name


def _passes(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], tolerance: Tolerance) -> Figures | None:
    try:
        return compare(actual, expected, tolerance)
    except AssertionError:
        return None


def _show(figures: Figures) -> str:
    return f"cosine {figures.cosine:.5f} max-abs {figures.max_abs:.1e} norm {figures.norm_error:.1e}"
