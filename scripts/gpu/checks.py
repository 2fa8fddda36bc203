"""Whether the engine is right: every family's tiny checkpoints against transformers, and the fp8 engine's own gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bei_core.checkpoint import resolve
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened, load
from bei_core.engines.provider import recipe
from bei_core.engines.store import publish
from bei_core.engines.tensorrt_llm import build
from bei_core.engines.tensorrt_llm.artifact import FAMILIES, family_name
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import (
    CASES,
    CLASSIFICATION_CASES,
    GROUP_CASES,
    GROUP_CLASSIFICATION_CASES,
    Case,
    ClassificationCase,
)
from tests.golden.tolerance import BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, compare, compare_logits

EXCLUDED = "bert-prompt-excluded"  # a prompt left out of the mean, which its ids alone do not say
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Check:
    """One thing that was held against what it should be."""

    what: str
    figure: str  # what was found
    passed: bool
    seconds: float


def engine(model: str, folder: Path, **settings: object) -> Opened:
    """The engine of a model, built into a folder and loaded from it."""
    checkpoint = resolve(model)
    spec = read_spec(checkpoint)
    given = Settings.load({"engine": "tensorrt_llm", **settings}, {"HOME": "/nonexistent"})
    publish(folder, recipe(build, checkpoint, spec, given)[1])
    return load(folder)


def cases() -> list[Any]:
    """The golden checkpoints of the families that the engine runs."""
    every: tuple[Any, ...] = (*CASES, *GROUP_CASES, *CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)
    return [case for case in every if family_name(case.architecture) in FAMILIES and case.name != EXCLUDED]


def parity(folder: Path, every: bool) -> Iterator[Check]:
    """Each family in f32 by plain kernels and in bf16 by fused ones; the first of each kind, or every checkpoint."""
    seen: set[tuple[str, bool]] = set()
    for case in cases():
        family, embeds = family_name(case.architecture), isinstance(case, Case)
        if (family, embeds) in seen and not every:
            continue
        seen.add((family, embeds))
        for dtype in DTYPES:
            kind = "embedding" if embeds else "classification"
            yield _timed(f"{family} {kind} {dtype} ({case.name})", partial(_parity, case, dtype, folder))


def _parity(case: Case | ClassificationCase, dtype: str, folder: Path) -> str:
    opened = engine(str(case.folder), folder / f"{case.name}-{dtype}", dtype=dtype)
    types = getattr(case, "type_ids", None) or [np.zeros_like(ids) for ids in case.ids]
    tokens = [Tokens(*both) for both in zip(case.ids, types, strict=True)]
    try:
        together = opened.engine.forward(Batch.pack(tokens))
        alone = np.concatenate([opened.engine.forward(Batch.pack([item])) for item in tokens])
    finally:
        opened.engine.close()
    if isinstance(case, Case):
        worst = [compare(rows, case.raw, F32 if dtype == "float32" else BF16_WIDE) for rows in (together, alone)]
        return f"cosine {min(figures.cosine for figures in worst):.6f}"
    limit = LOGITS_F32 if dtype == "float32" else 2 * LOGITS_BF16
    return f"logits within {max(compare_logits(rows, case.logits, limit) for rows in (together, alone)):.1e}"


def fp8(model: str, folder: Path, **settings: object) -> Check:
    """The gate of a model that is to be served in fp8: cosine to what it was, on texts held out."""

    def gate() -> str:
        opened = engine(model, folder, quantization_type="fp8", **settings)
        opened.engine.close()
        return str(opened.manifest.quality)

    return _timed(f"fp8 of {model}", gate)


def _timed(what: str, run: Callable[[], str]) -> Check:
    """The check, failed with the first line of whatever was raised."""
    started = time.perf_counter()
    try:
        figure, passed = run(), True
    except Exception as fault:  # one that fails does not keep the rest from being seen
        figure, passed = f"{type(fault).__name__}: {str(fault).splitlines()[0]}", False
    return Check(what, figure, passed, time.perf_counter() - started)
