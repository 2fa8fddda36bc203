"""Families other than BERT-like encoders, built and loaded: vectors, scores and token rows equal transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.open import build_engine, open_engine
from bei_core.errors import ConfigError
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.tasks import Embed, EncodeOptions, Pair, Rows, Tokens
from bei_core.text.templates import named_template
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import (
    GROUP_CASES,
    GROUP_CLASSIFICATION_CASES,
    OUTPUT_CASES,
    Case,
    ClassificationCase,
    Ids,
    OutputCase,
)
from tests.golden.engines import built
from tests.golden.tolerance import BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, check_order, compare, compare_logits

pytestmark = pytest.mark.usefixtures("compiled_once")

TOLERANCES = {"float32": F32, "bfloat16": BF16_WIDE}
MARGINS = {"float32": 1e-4, "bfloat16": 0.05}  # of cosines that have an order
MAX_ABS = {"float32": LOGITS_F32, "bfloat16": 2 * LOGITS_BF16}  # random decoders are as far off in torch's own bf16
# What a plain folder has to be asked for: nothing in it says that it is a SPLADE model, or a reranker.
OPTIONS: dict[str | None, dict[str, Any]] = {
    "sparse": {"pooling": "splade"},
    "yes_no": {"template": named_template("qwen3-reranker")},
}

Opener = Callable[[Path, str | None], tuple[Engine, ModelSpec]]


@pytest.fixture
def opened(dtype: str, tmp_path: Path) -> Opener:
    """The engine of a folder, built and loaded, and its spec."""

    def make(folder: Path, kind: str | None) -> tuple[Engine, ModelSpec]:
        checkpoint = resolve(str(folder))
        spec = read_spec(checkpoint, **OPTIONS.get(kind, {}))
        return built(checkpoint, spec, tmp_path / "engine", dtype=dtype).engine, spec

    return make


def tokens_of(ids: Sequence[Ids]) -> list[Tokens]:
    return [Tokens(each, np.zeros_like(each)) for each in ids]


def alone(engine: Engine, tokens: list[Tokens]) -> Rows:
    return np.concatenate([engine.forward(Batch.pack([item])) for item in tokens])


@pytest.mark.parametrize("case", GROUP_CASES, ids=str)
def test_vectors_are_the_expected_ones_in_a_batch_and_alone(case: Case, dtype: str, opened: Opener) -> None:
    engine, spec = opened(case.folder, None)
    tokens = tokens_of(case.ids)
    together, single = engine.forward(Batch.pack(tokens)), alone(engine, tokens)
    compare(together, case.raw, TOLERANCES[dtype])
    compare(single, case.raw, TOLERANCES[dtype])
    assert check_order(together, case.raw, MARGINS[dtype]) > 100
    compare(Embed(case.texts, normalize=spec.normalize).finish(together), case.vectors, TOLERANCES[dtype])
    assert (engine.info.row_width, engine.info.max_seq_len) == (case.dimension, case.max_seq_length)


@pytest.mark.parametrize("case", GROUP_CLASSIFICATION_CASES, ids=str)
def test_logits_are_the_expected_ones_in_a_batch_and_alone(
    case: ClassificationCase, dtype: str, opened: Opener
) -> None:
    engine, spec = opened(case.folder, None)
    assert spec.classifier is not None
    assert spec.classifier.labels == case.labels
    tokens = [Tokens(ids, type_ids) for ids, type_ids in zip(case.ids, case.type_ids, strict=True)]
    compare_logits(engine.forward(Batch.pack(tokens)), case.logits, MAX_ABS[dtype])
    compare_logits(alone(engine, tokens), case.logits, MAX_ABS[dtype])


@pytest.mark.parametrize("case", OUTPUT_CASES, ids=str)
def test_outputs_are_the_expected_ones_in_a_batch_and_alone(case: OutputCase, dtype: str, opened: Opener) -> None:
    engine, _ = opened(case.folder, case.kind)
    tokens = tokens_of(case.ids)
    if case.kind in {"sparse", "yes_no"}:
        found, single = engine.forward(Batch.pack(tokens)), alone(engine, tokens)
    else:
        rows, found = engine.forward_tokens(Batch.pack(tokens))
        single = np.concatenate([engine.forward_tokens(Batch.pack([item]))[1] for item in tokens])
        assert rows.shape == (len(tokens), engine.info.row_width)
    for actual in (found, single):
        if case.kind == "sparse" or case.kind == "colbert":
            compare(actual, case.expected, TOLERANCES[dtype])
        else:
            compare_logits(actual, case.expected, MAX_ABS[dtype])


def test_a_template_of_ones_own_gives_a_causal_model_its_answers(tmp_path: Path) -> None:
    """The answers are the golden's in reverse order. An engine folder is refused with any other answers."""
    case = next(case for case in OUTPUT_CASES if case.name == "qwen3-yes-no-tied")
    known = named_template("qwen3-reranker")
    own, other = (
        json.dumps({"template": known.template, "tokens": tokens}) for tokens in (["yes", "no"], ["no", "yes"])
    )
    flags = {"model_id": str(case.folder), "dtype": "float32", "cache_dir": str(tmp_path / "cache")}
    folder = build_engine(Settings.load({**flags, "rerank_template": own}, {}), tmp_path / "engine")
    opened = open_engine(Settings.load({"model_id": str(folder), "rerank_template": own}, {}))
    compare_logits(opened.engine.forward(Batch.pack(tokens_of(case.ids))), -case.expected, LOGITS_F32)
    opened.close()
    with pytest.raises(ConfigError, match="built for other answers than this rerank_template"):
        open_engine(Settings.load({"model_id": str(folder), "rerank_template": other}, {}))


def test_a_pooling_for_a_classifier_has_no_effect_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At every start, also from the cache. text-embeddings-inference does the same."""
    case = GROUP_CLASSIFICATION_CASES[0]
    flags = {"model_id": str(case.folder), "cache_dir": str(tmp_path), "dtype": "float32", "pooling": "mean"}
    for _ in range(2):
        caplog.clear()
        opened = open_engine(Settings.load(flags, {}))
        tokens = [Tokens(ids, type_ids) for ids, type_ids in zip(case.ids, case.type_ids, strict=True)]
        compare_logits(opened.engine.forward(Batch.pack(tokens)), case.logits, LOGITS_F32)
        opened.close()
        assert f"pooling mean has no effect: {case.folder} is a {opened.spec.kind}" in caplog.text


@pytest.mark.parametrize("case", [*GROUP_CASES, *OUTPUT_CASES], ids=str)
def test_texts_become_the_ids_of_transformers(case: Case | OutputCase) -> None:
    if isinstance(case, OutputCase) and case.kind == "yes_no":
        return
    spec = read_spec(Checkpoint(case.folder, str(case.folder), "0"))
    tokenizer = TextTokenizer(case.folder / "tokenizer.json", max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    prompt = case.prompt if isinstance(case, Case) else None
    tokens = tokenizer.encode_now(case.texts, EncodeOptions(prompt=prompt or None))
    assert [item.ids.tolist() for item in tokens] == [ids.tolist() for ids in case.ids]


@pytest.mark.parametrize("case", GROUP_CLASSIFICATION_CASES, ids=str)
def test_texts_and_pairs_become_the_ids_of_transformers(case: ClassificationCase) -> None:
    spec = read_spec(Checkpoint(case.folder, str(case.folder), "0"))
    tokenizer = TextTokenizer(case.folder / "tokenizer.json", max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    inputs = [Pair(*texts) if len(texts) == 2 else texts[0] for texts in case.inputs]
    tokens = tokenizer.encode_now(inputs, EncodeOptions())
    assert [item.ids.tolist() for item in tokens] == [ids.tolist() for ids in case.ids]
    assert [item.type_ids.tolist() for item in tokens] == [type_ids.tolist() for type_ids in case.type_ids]
