"""Golden decoders with a score head: what transformers makes of them, and proof that mistakes would show."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scripts.golden import classify
from scripts.golden.classify import Classified, Classifier, Features
from scripts.golden.decoders_audit import Ids, check_size, difference, require_different
from scripts.golden.decoders_folder import DecoderSpec, write_folder
from scripts.golden.decoders_mistakes import decoder_mistakes, reconfigured

MIN_DEVIATION = 0.15  # of each label's logit over the inputs


def make_classifier(root: Path, spec: DecoderSpec, texts: list[str], number: int) -> dict[str, object]:
    """The line of the index, after the folder and its expectations are written and audited."""
    folder = root / spec.name
    write_folder(folder, spec, texts)
    classifier = load(folder)
    rows = classify.choose_inputs(texts, number)
    expected = classify.expect(classifier, texts, rows)
    inputs = classify.inputs_of(texts, rows)
    expected = replace(expected, type_ids=_type_ids(folder, classifier, expected, inputs))
    classify.save(expected, folder / "expected.safetensors")
    print(f"{spec.name:36} {_audit(folder, spec, classifier, expected, inputs)}", flush=True)
    return {
        "name": spec.name,
        "kind": "classification",
        "architecture": spec.architecture,
        "labels": classifier.labels,
        "problem_type": classifier.model.config.problem_type,
        "max_seq_length": classifier.max_seq_length,
        "covers": spec.covers,
    }


def load(folder: Path) -> Classifier:
    """The folder in f32. Raises unless it holds exactly the weights of the model."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"] or report["unexpected_keys"]:
        raise AssertionError(f"{folder.name}: transformers did not read every weight: {report}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return Classifier(model.eval(), tokenizer, length)


def _type_ids(folder: Path, classifier: Classifier, expected: Classified, inputs: list[classify.Input]) -> Ids:
    """As tokenizer.json makes them, though no decoder reads them. Raises unless it makes the same ids."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(classifier.max_seq_length, strategy="longest_first")
    encodings = [tokenizer.encode(item[0], item[1] if len(item) == 2 else None) for item in inputs]
    if _joined(encoding.ids for encoding in encodings) != expected.input_ids.tolist():
        raise AssertionError(f"{folder.name}: transformers and tokenizer.json differ")
    return np.array(_joined(encoding.type_ids for encoding in encodings), np.int32)


def _joined(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def _audit(
    folder: Path, spec: DecoderSpec, classifier: Classifier, expected: Classified, inputs: list[classify.Input]
) -> str:
    """One line for people. Raises AssertionError if the case proves too little or cannot be met."""
    size = check_size(folder)
    if (deviation := float(expected.logits.std(axis=0).min())) < MIN_DEVIATION:
        raise AssertionError(f"{spec.name}: different inputs get like logits, deviation {deviation:.2f}")
    features = [classify.encode(classifier, item) for item in inputs]
    exact = difference(classify.logits_of(copy.deepcopy(classifier.model).double(), features), expected.logits)
    if exact > 1e-4:
        raise AssertionError(f"{spec.name}: f32 and f64 differ by {exact:.1e}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_bf16 = difference(classify.logits_of(classifier.model, features), expected.logits)
    swapped = [classify.encode(classifier, item[::-1]) for item in inputs]
    shorter = [_shorter(each) for each in features]
    spoilt = {
        "query and document change places": classify.logits_of(classifier.model, swapped),
        "two tokens are missing at the end": classify.logits_of(classifier.model, shorter),
    }
    for name, make in decoder_mistakes(spec, classifier.model.base_model).items():
        wrong = copy.deepcopy(classifier.model)
        make(wrong)
        spoilt[name] = classify.logits_of(wrong, features)
    for name, changes in spec.mistakes.items():
        with reconfigured(folder, changes) as elsewhere:
            spoilt[name] = classify.logits_of(load(elsewhere).model, features)
    seen, least = min((require_different(name, logits, expected.logits), name) for name, logits in spoilt.items())
    return (
        f"{size:6} bytes, deviation {deviation:.2f}, f64 {exact:.0e}, bf16 {in_bf16:.1e}, {len(spoilt)} mistakes "
        f"caught, the least visible {least} by {seen:.1e}"
    )


def _shorter(features: Features) -> Features:
    return {name: value[:, : max(1, value.shape[1] - 2)] for name, value in features.items()}
