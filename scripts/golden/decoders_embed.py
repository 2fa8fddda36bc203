"""Golden decoders that embed: what sentence-transformers makes of them, and proof that mistakes would show."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from scripts.golden import expect
from scripts.golden.decoders_audit import Rows, check_ids, check_size, difference, require_different
from scripts.golden.decoders_folder import DecoderSpec, write_folder
from scripts.golden.decoders_mistakes import decoder_mistakes, reconfigured
from scripts.golden.mistakes import MODES, Mistake
from scripts.golden.spec import Model

MAX_LIKENESS = 0.9  # mean cosine between different texts
KINDRED = {"mean", "mean_sqrt_len_tokens"}  # they differ by a factor, which Normalize removes


def make_embedder(root: Path, spec: DecoderSpec, texts: list[str], number: int) -> dict[str, object]:
    """The line of the index, after the folder and its expectations are written and audited."""
    folder = root / spec.name
    write_folder(folder, spec, texts)
    model = load(folder)
    expected = expect.expect(model, texts, expect.choose_texts(texts, number))
    expect.save(expected, folder / "expected.safetensors")
    print(f"{spec.name:36} {_audit(folder, spec, model, expected, texts)}", flush=True)
    return {
        "name": spec.name,
        "kind": "embedding",
        "architecture": spec.architecture,
        "dimension": expected.vectors.shape[1],
        "max_seq_length": model.max_seq_length,
        "prompt": expect.prompt_of(model),
        "covers": spec.covers,
    }


def load(folder: Path) -> Model:
    """The folder as a SentenceTransformer in f32, with attention whose masks are exact whatever the family."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)


def _audit(folder: Path, spec: DecoderSpec, model: Model, expected: expect.Expected, texts: list[str]) -> str:
    """One line for people. Raises AssertionError if the case proves too little or cannot be met."""
    size = check_size(folder)
    chosen = [texts[row] for row in expected.text_rows]
    if (likeness := _likeness(expected.vectors)) > MAX_LIKENESS:
        raise AssertionError(f"{spec.name}: different texts look alike, mean cosine {likeness:.3f}")
    check_ids(folder, model.max_seq_length, [expect.prompt_of(model) + text for text in chosen], expected)
    exact = difference(_encode(copy.deepcopy(model).double(), chosen), expected.vectors)
    if exact > 1e-4:
        raise AssertionError(f"{spec.name}: f32 and f64 differ by {exact:.1e}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_bf16 = _cosine(_encode(model, chosen), expected.vectors)
    found = decoder_mistakes(spec, model[0].auto_model)
    found |= {f"{mode} pooling": _pool(mode) for mode in _other_modes(model)}
    least = []
    for name, make in found.items():
        wrong = copy.deepcopy(model)
        make(wrong)
        least.append((require_different(name, _encode(wrong, chosen), expected.vectors), name))
    for name, changes in spec.mistakes.items():
        with reconfigured(folder, changes) as elsewhere:
            least.append((require_different(name, _encode(load(elsewhere), chosen), expected.vectors), name))
    return (
        f"{size:6} bytes, likeness {likeness:.2f}, f64 {exact:.0e}, bf16 cosine {in_bf16:.4f}, {len(least)} mistakes "
        f"caught, the least visible {min(least)[1]} by {min(least)[0]:.1e}"
    )


def _other_modes(model: Model) -> list[str]:
    right = model[1].pooling_mode
    same = KINDRED if isinstance(list(model)[-1], Normalize) else set()
    return [mode for mode in MODES if mode != right and not {mode, right} <= same]


def _pool(mode: str) -> Mistake:
    def make(model: Model) -> None:
        model[1] = Pooling(model[1].embedding_dimension, mode, include_prompt=model[1].include_prompt)

    return make


def _encode(model: Model, texts: list[str]) -> Rows:
    rows = model.encode(texts, batch_size=1, show_progress_bar=False, convert_to_tensor=True)
    result: Rows = rows.float().numpy()
    return result


def _likeness(vectors: npt.NDArray[np.float32]) -> float:
    """The mean cosine between different rows."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())


def _cosine(actual: Rows, expected: Rows) -> float:
    """The least cosine of a row with its expectation."""
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((actual * expected).sum(axis=1) / lengths).min())
