"""Entities of the golden token classifiers, against what transformers' pipeline makes of the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.models.spec import read_spec
from bei_core.tasks import EncodeOptions, scores
from bei_core.text.ner import Entity, Strategy, drop_ignored, find_entities
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import OUTPUT_CASES, OutputCase
from tests.golden.engines import built

CASES = [case for case in OUTPUT_CASES if case.entities is not None]
STRATEGIES: tuple[Strategy, ...] = ("none", "simple", "first", "average", "max")
TOLERANCE = 1e-3  # of a score


def test_there_are_cases_of_both_kinds_of_vocabulary() -> None:
    kinds = {json.loads((case.folder / "tokenizer.json").read_text())["model"]["type"] for case in CASES}
    assert kinds >= {"WordPiece", "BPE"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_strategy_finds_what_transformers_finds(case: OutputCase, tmp_path: Path) -> None:
    expected = case.entities
    assert expected is not None
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    assert spec.classifier is not None
    engine = built(checkpoint, spec, tmp_path / "engine").engine
    words = TextTokenizer(case.folder / "tokenizer.json", max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    for number, text in enumerate(expected["texts"]):
        (tokens,) = words.encode_now([text], EncodeOptions(spans=True))
        rows = scores(engine.forward_tokens(Batch.pack([tokens]))[1], spec.classifier.scoring)
        assert [span.id for span in tokens.spans] == tokens.ids.tolist()
        for strategy in STRATEGIES:
            entities = find_entities(text, tokens.spans, rows, spec.classifier.labels, words, strategy)
            found = drop_ignored(entities, ["O"])
            assert_same(found, expected[strategy][number], strategy)


def assert_same(found: list[Entity], expected: list[dict[str, Any]], strategy: Strategy) -> None:
    label = "entity" if strategy == "none" else "entity_group"
    assert [(entity.label, entity.word, entity.start, entity.end) for entity in found] == [
        (item[label], item["word"], item["start"], item["end"]) for item in expected
    ]
    for entity, item in zip(found, expected, strict=True):
        assert entity.score == pytest.approx(item["score"], abs=TOLERANCE)
        assert strategy != "none" or entity.index == item["index"]
