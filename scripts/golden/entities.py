"""Computes the entities that transformers' pipeline makes of a token classifier's labels, by each strategy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

STRATEGIES = ("none", "simple", "first", "average", "max")
MAX_ROUNDING = 1e-4  # of a score, between f32 and f64
DIGITS = 6
TEXTS = (
    "Ada Lovelace wrote to Charles Babbage, and he answered.",
    "The train to Porto leaves at nine; Maria is on it.",
    "The Bank of England raised its rates again!",
    "Who lives in Paris? Jean-Paul, Anne and their cat.",
    "Mr. Smith's letter (from Vienna) was never found.",
    "Our tests showed that Berlin is warmer than Oslo.",
    "It rained.",
    "Anna, Peter, Rome, Madrid: every name here is one word.",
)

Entities = list[dict[str, Any]]


def entities_of(folder: Path) -> dict[str, list[Any]]:
    """Returns the texts, and for each strategy the entities of every text.

    Raises AssertionError if f64 gives other entities, because then an engine in f32 may give other entities, too.
    """
    found, exact = _find(folder, torch.float32), _find(folder, torch.float64)
    for strategy in STRATEGIES:
        for entities, others in zip(found[strategy], exact[strategy], strict=True):
            _compare(entities, others)
    return {"texts": list(TEXTS), **found}


def _find(folder: Path, dtype: torch.dtype) -> dict[str, list[Any]]:
    options = {"dtype": dtype, "attn_implementation": "eager", "local_files_only": True}
    model = AutoModelForTokenClassification.from_pretrained(folder, **options)
    warnings.filterwarnings("ignore", message="Tokenizer does not support real words")  # true of one of the cases
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    find = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    return {
        strategy: [[_plain(entity) for entity in find(text, aggregation_strategy=strategy)] for text in TEXTS]
        for strategy in STRATEGIES
    }


def _plain(entity: dict[str, Any]) -> dict[str, Any]:
    """Returns the entity in Python's own types."""
    numbers = {name: int(entity[name]) for name in ("index", "start", "end") if name in entity}
    return entity | {"score": round(float(entity["score"]), DIGITS)} | numbers


def _compare(entities: Entities, others: Entities) -> None:
    for one, other in zip(entities, others, strict=True):
        if one | {"score": 0} != other | {"score": 0} or abs(one["score"] - other["score"]) > MAX_ROUNDING:
            raise AssertionError(f"f32 finds {one}, f64 {other}")
