"""Checks that a GPU engine is correct: compares tiny checkpoints of each family with transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.tensorrt_llm.limits import check_model
from bei_core.engines.torch.folder import facts_of
from bei_core.engines.torch.kernels import varlen
from bei_core.engines.torch.kernels.base import AttentionSizes
from bei_core.engines.torch.models.relative import DistanceBias
from bei_core.engines.torch.models.sequences import Sequences, flatten
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import family_name, family_of
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from scripts.gpu.models import build_engine
from scripts.gpu.report import BEGINS, PARITY, Result
from tests.golden.cases import (
    CASES,
    CLASSIFICATION_CASES,
    GROUP_CASES,
    GROUP_CLASSIFICATION_CASES,
    HEAD_CASES,
    HEAD_CLASSIFICATION_CASES,
    Case,
    ClassificationCase,
)
from tests.golden.tolerance import BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, compare, compare_logits

EXCLUDED = "bert-prompt-excluded"  # has a prompt that pooling leaves out, so that token ids alone are not enough
DTYPES = ("bfloat16", "float32")  # the fused kernels first, in case no time is left


def cases(layout: str, *, every: bool) -> Iterator[Any]:
    """Yields golden checkpoints of a layout's families: without `every`, one embedder and one classifier of each.

    Those with the larger heads come first, because TensorRT-LLM's fused attention has no kernels for the others.
    """
    seen: set[tuple[str, bool]] = set()
    known: tuple[Any, ...] = (*HEAD_CASES, *HEAD_CLASSIFICATION_CASES, *CASES, *GROUP_CASES)
    for case in (*known, *CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES):
        kind = family_name(case.architecture), isinstance(case, Case)
        if family_of(case.architecture).layout.name == layout and case.name != EXCLUDED and (every or kind not in seen):
            seen.add(kind)
            yield case


def parity(layout: str, folder: Path, name: str, *, every: bool = False, start: int = 0) -> Iterator[Result]:
    """Checks the families of a layout in bf16 (fused kernels) and f32 (plain kernels); yields each result.

    Starts with check number `start`, and prints the name of a check before it runs: a kernel may end the process. Only
    the layers of the first model are compiled, because that takes long.
    """
    checks = [(case, dtype) for dtype in DTYPES for case in cases(layout, every=every)]
    for number, (case, dtype) in enumerate(checks[start:], start):
        what = f"{case.architecture} {dtype} ({case.name})"
        print(f"{BEGINS}{what}", flush=True)
        figures, passed, skipped = dict[str, str](), None, _reason_to_skip(case, dtype, name)
        if not skipped:
            try:
                figures, passed = _parity(case, dtype, folder, name, compiled=number == 0), True
            except Exception as fault:  # the next checks must still run
                figures, passed = {"error": f"{type(fault).__name__}: {str(fault).splitlines()[0]}"}, False
        yield Result(section=PARITY, what=what, figures=figures, passed=passed, skipped=skipped)


def attention() -> Iterator[Result]:
    """Compares compiled FlexAttention with attention of one sequence at a time; yields the result of each rule.

    A second batch with other lengths should need no new kernel. It is for GPUs: on a CPU, torch 2.14 generates C++ for
    these batches that does not compile.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = AttentionSizes(256, 4, 2, 64, 0.125, bias=False, out_bias=False, causal=False)
    rules = {
        "soft cap, causal, window": (replace(plain, causal=True, window=100, soft_cap=50.0), None),
        "biases by distance": (plain, DistanceBias(4, 512).to(device)),
    }
    for name, (sizes, bias) in rules.items():
        compiled, differences = [], []
        for lengths in ([300, 1, 130], [77, 400]):
            differences.append(_flex_difference(lengths, sizes, bias, device))
            compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        figures = {"largest difference": f"{max(differences):.1e}", "compiled again": str(compiled[1] - compiled[0])}
        passed = max(differences) < (0.03 if device.type == "cuda" else 1e-5)
        yield Result(section="FlexAttention, compiled", what=name, figures=figures, passed=passed)


def _flex_difference(
    lengths: list[int], sizes: AttentionSizes, bias: DistanceBias | None, device: torch.device
) -> float:
    """Returns the largest difference between FlexAttention, in bf16 on a GPU, and the definition in f32."""
    batch = Batch.pack([Tokens(*np.zeros((2, length), np.int32)) for length in lengths])
    sequences = Sequences.of(flatten(batch).to(device), batch.num_tokens, lengths)
    query, key, value = (torch.randn(batch.num_tokens, heads, sizes.head_size, device=device) for heads in (4, 2, 2))
    with torch.inference_mode():
        expected = varlen.by_sequence(query, key, value, sequences, sizes, bias)
        if device.type == "cuda":
            query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
        found = varlen.flex(query, key, value, sequences, sizes, bias)
    return float((found.float() - expected).abs().max())


def _reason_to_skip(case: Case | ClassificationCase, dtype: str, name: str) -> str:
    """Returns why an engine refuses the checkpoint in `dtype`; "" if it does not."""
    try:
        if name == "tensorrt_llm":
            check_model(facts_of(read_spec(resolve(str(case.folder)))), dtype)
    except UnsupportedModelError as fault:
        return str(fault)
    return ""


def _parity(case: Case | ClassificationCase, dtype: str, folder: Path, name: str, *, compiled: bool) -> dict[str, str]:
    place = folder / f"{case.name}-{dtype}"
    opened = build_engine(str(case.folder), place, name=name, dtype=dtype, compiled=compiled)
    types = getattr(case, "type_ids", None) or [np.zeros_like(ids) for ids in case.ids]
    tokens = [Tokens(*both) for both in zip(case.ids, types, strict=True)]
    try:
        together = opened.engine.forward(Batch.pack(tokens))
        alone = np.concatenate([opened.engine.forward(Batch.pack([item])) for item in tokens])
    finally:
        opened.engine.close()
    if isinstance(case, Case):
        worst = [compare(rows, case.raw, F32 if dtype == "float32" else BF16_WIDE) for rows in (together, alone)]
        return {"lowest cosine": f"{min(figures.cosine for figures in worst):.6f}"}
    limit = LOGITS_F32 if dtype == "float32" else 2 * LOGITS_BF16
    largest = max(compare_logits(rows, case.logits, limit) for rows in (together, alone))
    return {"largest difference of logits": f"{largest:.1e}"}
