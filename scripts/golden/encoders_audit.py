"""Proof that a golden encoder is worth keeping: an engine in f64 passes it, and each likely mistake shows in it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding, Tokenizer

from scripts.golden.encoders_folder import EncoderSpec, readable
from scripts.golden.spec import Model
from tests.golden.tolerance import BF16_WIDE, LOGITS_BF16, compare, compare_logits

MAX_BYTES = 130_000  # of a case
MAX_ROUNDING = 1e-4  # between f32 and f64
SAME_COSINE = 0.9999
SAME_ABS = 1e-3

Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]
Load = Callable[[Path], Model]
Compute = Callable[[Model], Rows]
Check = Callable[[Rows, Rows], object]


class HasIds(Protocol):
    """Token ids of all inputs, end to end."""

    @property
    def input_ids(self) -> Ids:
        """[T]."""

    @property
    def cu_seqlens(self) -> Ids:
        """[N + 1]: input i begins at cu_seqlens[i]."""


def audit(folder: Path, spec: EncoderSpec, load: Load, compute: Compute, expected: Rows, is_close: Check) -> str:
    """One line about the case for people. Raises AssertionError if the case proves too little or cannot be met.

    `compute` gives the rows of a model that `load` opened, and `is_close` raises if rows computed in bf16 are not.
    """
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MAX_BYTES:
        raise AssertionError(f"{spec.name}: {size} bytes")
    with readable(folder) as path:
        model = load(path)
    rounding = float(np.abs(compute(copy.deepcopy(model).double()) - expected).max())
    if rounding > MAX_ROUNDING:
        raise AssertionError(f"{spec.name}: f32 and f64 differ by {rounding:.1e}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_bf16 = compute(model)
    is_close(in_bf16, expected)
    wrong = dict(_wrong(folder, spec, load, model, compute))
    for name, rows in wrong.items():
        if _same(rows, expected):
            raise AssertionError(f"{spec.name}: {name} would pass")
    far = float(np.abs(in_bf16 - expected).max())
    return f"{size:6} bytes, f64 {rounding:.0e}, bf16 {far:.0e}, {len(wrong)} mistakes caught"


def is_close_in_direction(actual: Rows, expected: Rows) -> None:
    """Raises unless the rows are as near as vectors computed in bf16 have to be, whatever their lengths."""
    actual, expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (actual, expected))
    compare(actual, expected, BF16_WIDE)


def is_close_in_logits(actual: Rows, expected: Rows) -> None:
    """Raises unless the rows are as near as logits computed in bf16 have to be."""
    compare_logits(actual, expected, LOGITS_BF16)


def likeness(rows: Rows) -> float:
    """The mean cosine between different rows."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())


def check_ids(folder: Path, inputs: Sequence[tuple[str, ...]], expected: HasIds, max_seq_length: int) -> None:
    """Raises unless tokenizer.json alone, given the length, makes the expected ids, and some input was cut."""
    for row, encoding in enumerate(_encode(folder, inputs, max_seq_length)):
        start, end = expected.cu_seqlens[row : row + 2]
        if encoding.ids != expected.input_ids[start:end].tolist():
            raise AssertionError(f"{folder.name}: transformers and tokenizer.json differ on {inputs[row]!r}")
    if np.diff(expected.cu_seqlens).max() < max_seq_length:
        raise AssertionError(f"{folder.name}: no text is cut")


def type_ids_of(folder: Path, inputs: Sequence[tuple[str, ...]], max_seq_length: int) -> Ids:
    """[T], as tokenizer.json gives them also where transformers does not pass them on."""
    return np.concatenate([encoding.type_ids for encoding in _encode(folder, inputs, max_seq_length)]).astype(np.int32)


def _encode(folder: Path, inputs: Sequence[tuple[str, ...]], max_seq_length: int) -> list[Encoding]:
    """What tokenizer.json alone, given the length, makes of the inputs."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_seq_length, strategy="longest_first")
    return [tokenizer.encode(item[0], item[1] if len(item) > 1 else None) for item in inputs]


def _wrong(folder: Path, spec: EncoderSpec, load: Load, model: Model, compute: Compute) -> Iterator[tuple[str, Rows]]:
    """Name -> rows of each mistake: another configuration, a parameter at zero, a gate and its value swapped."""
    for name, changes in spec.mistakes.items():
        with readable(folder, changes) as path:
            yield name, compute(load(path))
    for pattern in spec.silenced:
        wrong = copy.deepcopy(model)
        found = [parameter for name, parameter in wrong.named_parameters() if re.search(pattern, name)]
        if not found:
            raise AssertionError(f"{spec.name}: no parameter is called {pattern}")
        for parameter in found:
            parameter.data = torch.zeros_like(parameter)
        yield f"{pattern} left out", compute(wrong)
    wrong = copy.deepcopy(model)
    if sum(_swap_gate(module) for module in wrong.modules()):
        yield "gate and value swapped", compute(wrong)


def _swap_gate(module: torch.nn.Module) -> bool:
    """Whether `module` is a gated feed-forward; it then applies the activation to the wrong half."""
    if hasattr(module, "gate_proj"):
        module.gate_proj, module.up_proj = module.up_proj, module.gate_proj
    elif hasattr(module, "Wi"):
        for parameter in module.Wi.parameters():
            parameter.data = parameter.data.roll(len(parameter) // 2, 0)
    else:
        return False
    return True


def _same(rows: Rows, expected: Rows) -> bool:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((rows * expected).sum(axis=1) / lengths).min())
    return cosine > SAME_COSINE and float(np.abs(rows - expected).max()) < SAME_ABS
