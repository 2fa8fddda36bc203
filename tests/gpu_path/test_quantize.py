"""Real quantisation by modelopt of every family's tiny checkpoints, and the fp8 engine against the f32 one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bei_core.batch import Batch
from bei_core.checkpoint import resolve
from bei_core.engines.open import Opened
from bei_core.engines.quality import measure
from bei_core.spec import read_spec
from bei_core.tasks import Rows, Tokens
from tests.golden.cases import CASES, CLASSIFICATION_CASES, GROUP_CASES, GROUP_CLASSIFICATION_CASES, Case
from tests.golden.texts import mixed_texts
from tests.gpu_path.conftest import Builder

NAMED: dict[str, Any] = {
    case.name: case for case in (*CASES, *GROUP_CASES, *CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)
}
# One embedder and one classifier of each family, with heads, Dense modules and grouped queries among them.
EMBEDDERS = (
    "bert-modern-dense-gelu",
    "roberta-mean-normalize",
    "xlmr-max-dense-identity-bf16",
    "distilbert-mean",
    "llama-3-rope-last",
    "mistral-wide-heads-bf16-sharded",
    "qwen2-tied-lm-last",
    "qwen2-gte-both-ways",
    "qwen3-embedding",
    "gemma2-multilingual",
    "embedding-gemma",
)
CLASSIFIERS = (
    "bert-rerank-pad7",
    "roberta-emotions-pad5-f16",
    "xlmr-sentiment-bf16",
    "llama-reward",
    "mistral-topics-no-pad",
    "qwen2-rerank-seq-cls",
    "qwen3-rerank-seq-cls",
    "gemma2-two-labels",
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of texts to calibrate with."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(text.replace("\n", " ") for text in mixed_texts()), encoding="utf-8")
    return path


def block(texts: Path, kind: str = "fp8") -> dict[str, Any]:
    return {
        "build": {
            "base_model": "encoder",
            "checkpoint_repository": {"source": "LOCAL", "repo": "/model"},
            "quantization_type": kind,
            "quantization_config": {"calib_dataset": str(texts), "calib_size": 128},
        }
    }


def rows_of(opened: Opened, case: Any) -> Rows:
    types = getattr(case, "type_ids", [np.zeros_like(ids) for ids in case.ids])
    return opened.engine.forward(Batch.pack([Tokens(*both) for both in zip(case.ids, types, strict=True)]))


def tensors_of(opened: Opened) -> dict[str, str]:
    tensors = resolve(str(opened.tokenizer.parent)).tensors()
    return {name: tensors.dtype(name) for name in tensors.names()}


@pytest.mark.parametrize("name", [*EMBEDDERS, *CLASSIFIERS])
def test_fp8_rows_are_near_those_of_f32(name: str, texts: Path, built: Builder) -> None:
    case = NAMED[name]
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    opened = built(checkpoint, spec, trt_llm=block(texts))
    assert (opened.engine.info.compute_type, opened.manifest.precision) == ("gpu+fp8", "fp8")
    expected = case.raw if isinstance(case, Case) else case.logits
    quality = measure(expected, rows_of(opened, case), spec.kind)
    print(name, quality, "| gate", opened.manifest.quality)
