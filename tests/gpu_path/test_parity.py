"""Each family's tiny checkpoints, built into engine folders and loaded, against the output of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.tensorrt_llm.artifact import FAMILIES
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import family_name
from bei_core.models.spec import read_spec
from bei_core.tasks import Embed, EncodeOptions, Rows, Tokens
from bei_core.text.templates import named_template
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import (
    CASES,
    CLASSIFICATION_CASES,
    GROUP_CASES,
    GROUP_CLASSIFICATION_CASES,
    OUTPUT_CASES,
    Case,
    ClassificationCase,
    OutputCase,
)
from tests.golden.tolerance import BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, compare, compare_logits
from tests.gpu_path.conftest import Builder
from tests.gpu_path.table import TABLE

EXCLUDED = "bert-prompt-excluded"  # has a prompt that pooling leaves out, so that token ids alone are not enough


def ours(architecture: str) -> bool:
    return family_name(architecture) in FAMILIES


EMBEDDERS = [case for case in (*CASES, *GROUP_CASES) if ours(case.architecture) and case.name != EXCLUDED]
CLASSIFIERS = [case for case in (*CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES) if ours(case.architecture)]
ANSWERERS = [case for case in OUTPUT_CASES if case.kind == "yes_no"]
OTHERS = [case for case in (*CASES, *GROUP_CASES) if not ours(case.architecture)]


def alone(engine: Engine, tokens: Iterable[Tokens]) -> Rows:
    return np.concatenate([engine.forward(Batch.pack([item])) for item in tokens])


def largest(actual: Rows, expected: Rows) -> float:
    return float(np.abs(actual - expected).max())


def prefix_column(folder: Path) -> str:
    names = resolve(str(folder)).tensors().names()
    return (
        "prefix" if any(re.match(r"(model|bert|roberta|distilbert|electra)\.", name) for name in names) else "no prefix"
    )


@pytest.mark.parametrize("case", EMBEDDERS, ids=str)
def test_vectors_equal_those_of_transformers_in_a_batch_and_alone(case: Case, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    engine = built(checkpoint, spec, dtype="float32").engine
    tokens = [Tokens(ids, np.zeros_like(ids)) for ids in case.ids]
    together, single = engine.forward(Batch.pack(tokens)), alone(engine, tokens)
    compare(together, case.raw, F32)
    compare(single, case.raw, F32)
    compare(Embed(case.texts, normalize=spec.normalize).finish(together), case.vectors, F32)
    assert (engine.info.row_width, engine.info.max_seq_len) == (case.dimension, case.max_seq_length)
    family = family_name(case.architecture)
    TABLE.note(family, "embedding", largest(together, case.raw))
    TABLE.note(family, "packed = alone", largest(together, single))
    TABLE.note(family, prefix_column(case.folder), largest(together, case.raw))


@pytest.mark.parametrize("case", CLASSIFIERS, ids=str)
def test_logits_equal_those_of_transformers_in_a_batch_and_alone(case: ClassificationCase, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint), dtype="float32").engine
    tokens = [Tokens(ids, type_ids) for ids, type_ids in zip(case.ids, case.type_ids, strict=True)]
    together, single = engine.forward(Batch.pack(tokens)), alone(engine, tokens)
    compare_logits(together, case.logits, LOGITS_F32)
    compare_logits(single, case.logits, LOGITS_F32)
    family = family_name(case.architecture)
    TABLE.note(family, "classification", largest(together, case.logits))
    TABLE.note(family, "packed = alone", largest(together, single))
    TABLE.note(family, prefix_column(case.folder), largest(together, case.logits))


@pytest.mark.parametrize("case", ANSWERERS, ids=str)
def test_the_score_of_a_yes_no_reranker_is_the_logit_of_yes_minus_that_of_no(case: OutputCase, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint, template=named_template("qwen3-reranker"))
    engine = built(checkpoint, spec, dtype="float32").engine
    rows = engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids]))
    compare_logits(rows, case.expected, LOGITS_F32)
    TABLE.note(family_name(spec.architecture), "classification", largest(rows, case.expected))


@pytest.mark.parametrize("case", EMBEDDERS, ids=str)
def test_vectors_in_bf16_are_within_tolerance(case: Case, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint)).engine
    rows = engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids]))
    assert engine.info.compute_type == "gpu+bf16"
    compare(rows, case.raw, BF16_WIDE)


@pytest.mark.parametrize("case", CLASSIFIERS, ids=str)
def test_logits_in_bf16_are_within_tolerance(case: ClassificationCase, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint)).engine
    tokens = [Tokens(ids, type_ids) for ids, type_ids in zip(case.ids, case.type_ids, strict=True)]
    compare_logits(engine.forward(Batch.pack(tokens)), case.logits, 2 * LOGITS_BF16)


def test_pooling_excludes_the_prompt(built: Builder) -> None:
    (case,) = (case for case in CASES if case.name == EXCLUDED)
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    opened = built(checkpoint, spec, dtype="float32")
    tokenizer = TextTokenizer(opened.tokenizer, max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    tokens = tokenizer.encode_now(case.texts, EncodeOptions(prompt=case.prompt, pool_prompt=False))
    assert [item.ids.tolist() for item in tokens] == [ids.tolist() for ids in case.ids]
    assert all(item.skip for item in tokens)
    compare(opened.engine.forward(Batch.pack(tokens)), case.raw, F32)


@pytest.mark.parametrize("case", OTHERS[:3], ids=str)
def test_an_unsupported_family_is_refused_and_the_error_names_the_cpu_engine(case: Case, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    with pytest.raises(UnsupportedModelError, match=rf"does not run {spec.architecture}.*--engine openvino"):
        built(checkpoint, spec)


def test_every_required_family_has_a_case() -> None:
    embedding = {family_name(case.architecture) for case in EMBEDDERS}
    scoring = {family_name(case.architecture) for case in CLASSIFIERS}
    required = {"Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Bert", "Roberta", "XLMRoberta"}
    assert required <= embedding
    assert required <= scoring
