"""Golden encoders that give the scores of a text or of a pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from scripts.golden import classify
from scripts.golden.encoders_audit import Rows, audit, check_ids, is_close_in_logits, type_ids_of
from scripts.golden.encoders_folder import EncoderSpec, readable, write_folder
from scripts.golden.spec import Model

MIN_DEVIATION = 0.15  # of each label's logit over the inputs


def make_classifier(root: Path, spec: EncoderSpec, texts: list[str], number: int) -> dict[str, object]:
    """The line of the index, after the folder and its expectations are written and audited."""
    folder = root / spec.name
    write_folder(folder, spec, texts)
    with readable(folder) as path:
        classifier = _load(path)
    expected = classify.expect(classifier, texts, classify.choose_inputs(texts, number))
    rows = list(zip(expected.text_rows.tolist(), expected.pair_rows.tolist(), strict=True))
    inputs = classify.inputs_of(texts, rows)
    features = [classify.encode(classifier, item) for item in inputs]
    if "token_type_ids" not in features[0]:  # nor does the model use any
        expected = replace(expected, type_ids=type_ids_of(folder, inputs, classifier.max_seq_length))
    classify.save(expected, folder / "expected.safetensors")
    check_ids(folder, inputs, expected, classifier.max_seq_length)
    if (deviation := float(expected.logits.std(axis=0).min())) < MIN_DEVIATION:
        raise AssertionError(f"{spec.name}: different inputs get like logits, deviation {deviation:.2f}")

    def compute(model: Model) -> Rows:
        return classify.logits_of(model, features)

    line = audit(folder, spec, lambda path: _load(path).model, compute, expected.logits, is_close_in_logits)
    print(f"{spec.name:36} deviation {deviation:.2f}, {line}", flush=True)
    return {
        "name": spec.name,
        "kind": "classification",
        "architecture": spec.architecture,
        "labels": classifier.labels,
        "problem_type": json.loads((folder / "config.json").read_text(encoding="utf-8")).get("problem_type"),
        "max_seq_length": classifier.max_seq_length,
        "covers": spec.covers,
    }


def _load(folder: Path) -> classify.Classifier:
    classifier = classify.load(folder)
    classifier.model.set_attn_implementation("eager")
    return classifier
