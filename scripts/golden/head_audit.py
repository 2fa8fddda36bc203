"""Proof that a golden classifier is worth keeping, as `audit.py` gives it of the embedding models."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from scripts.golden.classify import ALONE, Classified, Classifier, Features, Input, encode, inputs_of, logits_of
from scripts.golden.head_mistakes import mistakes, rebuilt
from scripts.golden.mistakes import Mistake, Reach
from scripts.golden.spec import CaseSpec
from tests.golden.tolerance import LOGITS_BF16, LOGITS_F32, compare_logits

MIN_DEVIATION = 0.15  # of each label's logit over the inputs
MIN_SWAPPED = 1 / 3  # of the pairs
MAX_BYTES = 150_000  # of a case
CUTS = {"text whole", "text cut", "pair whole", "first cut", "second cut", "both cut"}


def audit(folder: Path, spec: CaseSpec, classifier: Classifier, expected: Classified, texts: list[str]) -> str:
    """One line about the case for people. Raises AssertionError if the case proves too little or cannot be met."""
    if (size := sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())) > MAX_BYTES:
        raise AssertionError(f"{spec.name}: {size} bytes")
    if (deviation := float(expected.logits.std(axis=0).min())) < MIN_DEVIATION:
        raise AssertionError(f"{spec.name}: different inputs get like logits, deviation {deviation:.2f}")
    _check_labels(folder, classifier, expected)
    inputs = inputs_of(texts, list(zip(expected.text_rows.tolist(), expected.pair_rows.tolist(), strict=True)))
    _check_ids(folder, classifier, expected, inputs)
    features = [encode(classifier, item) for item in inputs]
    compare_logits(logits_of(copy.deepcopy(classifier.model).double(), features), expected.logits, LOGITS_F32)
    compare_logits(_spoilt(rebuilt(lambda head: head), classifier, features), expected.logits, LOGITS_F32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_bf16 = compare_logits(logits_of(classifier.model, features), expected.logits, LOGITS_BF16)
    _check_order_matters(classifier, expected, inputs)
    wrong = mistakes(spec, classifier.model, classifier.max_seq_length)
    for name, (make, reach) in wrong.items():
        _check_caught(name, _spoilt(make, classifier, features), expected, reach)
    return f"{size:6} bytes, deviation {deviation:.2f}, bf16 max-abs {in_bf16:.1e}, {len(wrong) + 1} mistakes caught"


def _spoilt(make: Mistake, classifier: Classifier, features: list[Features]) -> npt.NDArray[np.float32]:
    wrong = copy.deepcopy(classifier.model)
    make(wrong)
    return logits_of(wrong, features)


def _check_caught(name: str, logits: npt.NDArray[np.float32], expected: Classified, reach: Reach) -> None:
    """Raises if an engine that makes this mistake would pass."""
    for limit in (LOGITS_F32, LOGITS_BF16) if reach is Reach.EVERY_PRECISION else (LOGITS_F32,):
        if (difference := float(np.abs(logits - expected.logits).max())) <= limit:
            raise AssertionError(f"{name} would pass with max-abs {difference:.1e} (<= {limit})")


def _check_order_matters(classifier: Classifier, expected: Classified, inputs: list[Input]) -> None:
    """Raises unless many pairs of different texts get other logits when the texts change places, in bf16 as well."""
    pairs = [row for row, item in enumerate(inputs) if len(set(item)) == 2]
    swapped = logits_of(classifier.model, [encode(classifier, inputs[row][::-1]) for row in pairs])
    differ = np.abs(swapped - expected.logits[pairs]).max(axis=1) > LOGITS_BF16
    if differ.mean() < MIN_SWAPPED:
        raise AssertionError(f"document and query can change places in {(~differ).sum()} of {len(pairs)} pairs")


def _check_labels(folder: Path, classifier: Classifier, expected: Classified) -> None:
    """Raises unless config.json's names, sorted by number, or LABEL_i are the names that transformers has."""
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label")
    count = expected.logits.shape[1]
    plain = [f"LABEL_{position}" for position in range(count)]
    if classifier.labels != (plain if names is None else [names[str(position)] for position in range(count)]):
        raise AssertionError(f"{folder.name}: labels {classifier.labels}")


def _check_ids(folder: Path, classifier: Classifier, expected: Classified, inputs: list[Input]) -> None:
    """Raises unless tokenizer.json alone, given the length, makes the expected ids, and every kind of cut occurs."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    seen = set()
    for row, item in enumerate(inputs):
        start, end = expected.cu_seqlens[row : row + 2]
        text, pair = item if len(item) == 2 else (item[0], None)
        tokenizer.no_truncation()
        whole = tokenizer.encode(text, pair).sequence_ids
        tokenizer.enable_truncation(classifier.max_seq_length, strategy="longest_first", direction="right")
        encoding = tokenizer.encode(text, pair)
        ids, type_ids = expected.input_ids[start:end].tolist(), expected.type_ids[start:end].tolist()
        if encoding.ids != ids or encoding.type_ids != type_ids:
            raise AssertionError(f"{folder.name}: transformers and tokenizer.json differ on {item!r}")
        cuts = [encoding.sequence_ids.count(part) < whole.count(part) for part in range(len(item))]
        seen.add(_name_of_cut(cuts, expected.pair_rows[row] == ALONE))
    if missing := CUTS - seen:
        raise AssertionError(f"{folder.name}: no input of the kinds {sorted(missing)}")


def _name_of_cut(cuts: list[bool], is_alone: bool) -> str:
    if is_alone:
        return "text cut" if cuts[0] else "text whole"
    return {(True, True): "both cut", (True, False): "first cut", (False, True): "second cut"}.get(
        (cuts[0], cuts[1]), "pair whole"
    )
