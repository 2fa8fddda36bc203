"""Checks that a GPU engine is correct: compares tiny checkpoints of each family with transformers, and checks fp8."""

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
from bei_core.engines.build import plan_build
from bei_core.engines.cache import publish_engine
from bei_core.engines.open import Opened, load
from bei_core.engines.registry import load_builder
from bei_core.engines.tensorrt_llm.limits import check_model
from bei_core.engines.torch.folder import facts_of, has_page
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import family_name, family_of
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

EXCLUDED = "bert-prompt-excluded"  # has a prompt that pooling leaves out, so that token ids alone are not enough
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Check:
    """The result of one comparison."""

    what: str
    figure: str  # the measured figure, or the error
    passed: bool
    seconds: float


def engine(model: str, folder: Path, *, name: str = "tensorrt_llm", **settings: object) -> Opened:
    """Builds an engine folder of a model for the engine `name`, and returns the loaded engine."""
    checkpoint = resolve(model)
    spec = read_spec(checkpoint)
    given = Settings.load({"engine": name, **settings}, {"HOME": "/nonexistent"})
    publish_engine(folder, plan_build(load_builder(name), checkpoint, spec, given)[1])
    return load(folder)


def cases() -> list[Any]:
    """Returns the golden checkpoints of the families that the engine supports."""
    every: tuple[Any, ...] = (*CASES, *GROUP_CASES, *CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)
    return [case for case in every if has_page(family_of(case.architecture)) and case.name != EXCLUDED]


def parity(folder: Path, every: bool, name: str = "tensorrt_llm") -> Iterator[Check]:
    """Checks each family in f32 (plain kernels) and bf16 (fused kernels); yields each result.

    Without `every`, it checks one embedding model and one classifier of each family.
    """
    seen: set[tuple[str, bool]] = set()
    for case in cases():
        family, embeds = family_name(case.architecture), isinstance(case, Case)
        if (family, embeds) in seen and not every:
            continue
        seen.add((family, embeds))
        for dtype in DTYPES:
            if name == "tensorrt_llm" and not _has_kernels(case, dtype):
                continue
            kind = "embedding" if embeds else "classification"
            yield _timed(f"{family} {kind} {dtype} ({case.name})", partial(_parity, case, dtype, folder, name))


def _has_kernels(case: Case | ClassificationCase, dtype: str) -> bool:
    """Whether TensorRT-LLM can run the checkpoint; attention heads of tiny checkpoints may be too small for it."""
    try:
        check_model(facts_of(read_spec(resolve(str(case.folder)))), dtype)
    except UnsupportedModelError:
        return False
    return True


def _parity(case: Case | ClassificationCase, dtype: str, folder: Path, name: str) -> str:
    opened = engine(str(case.folder), folder / f"{case.name}-{dtype}", name=name, dtype=dtype)
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


def fp8(model: str, folder: Path, *, name: str = "tensorrt_llm", **settings: object) -> Check:
    """Checks that a model in fp8 passes the quality gate, which compares it with the unquantised model."""

    def gate() -> str:
        opened = engine(model, folder, name=name, quantization_type="fp8", **settings)
        opened.engine.close()
        return str(opened.manifest.quality)

    return _timed(f"fp8 of {model}", gate)


def _timed(what: str, run: Callable[[], str]) -> Check:
    """Runs a check and returns its result. If it raises, the check has failed with the first line of the error."""
    started = time.perf_counter()
    try:
        figure, passed = run(), True
    except Exception as fault:  # the next checks must still run
        figure, passed = f"{type(fault).__name__}: {str(fault).splitlines()[0]}", False
    return Check(what, figure, passed, time.perf_counter() - started)
