"""Checks that a golden is useful: an exact engine and a bf16 engine can pass, and each likely mistake fails."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.sentence_transformer.modules import Normalize

from scripts.golden.classification_heads import fine_head_mistakes, head_mistakes, rebuilt
from scripts.golden.expected import Arrays
from scripts.golden.inputs import Item, fill
from scripts.golden.kinds import EAGER, KINDS, Inputs, Kind, Loaded, Model, Rows, encode, load, tokenize, tokenizer_of
from scripts.golden.mistakes import (
    Mistake,
    bert_mistakes,
    decoder_mistakes,
    fine_mistakes,
    gate_mistakes,
    is_decoder,
    pooling_mistakes,
    silence,
)
from tests.golden.checkpoints import Description
from tests.golden.texts import mixed_texts
from tests.golden.tolerance import BF16, BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, compare, compare_logits

MAX_BYTES, MAX_BYTES_HEADS = 160_000, 600_000  # of a checkpoint, and of one in the group "heads"
MAX_LIKENESS = 0.9  # mean cosine between different rows
MIN_DEVIATION = {"classification": 0.15, "token_classification": 0.15, "yes_no": 0.3}  # of each logit over the inputs
SHARE_OF_WORDS = (0.05, 0.7)  # bounds on the share of words whose weight is above zero in a sparse vector
MIN_SWAPPED = 1 / 3  # the least share of pairs whose logits change if their texts are swapped
EXACT = 1e-4  # the largest difference between f32 and f64
EXACT_PARTS = 1e-5  # the largest difference between two ways to compute the same value in f32
VISIBLE = 1e-2  # the least change by a mistake in a decoder, relative to the usual size of the rows
SAME_COSINE, SAME_ABS = 0.9999, 1e-3  # rows count as equal within these limits
CUTS = {"text whole", "text cut", "pair whole", "first cut", "second cut", "both cut"}

Check = Callable[[Rows, Rows], object]  # raises AssertionError if actual rows are too far from the expected ones


@dataclass(frozen=True)
class Golden:
    """A checkpoint and its computed outputs."""

    case: Description
    folder: Path
    loaded: Loaded
    given: Inputs
    expected: Arrays

    @property
    def kind(self) -> Kind:
        """What is computed."""
        return KINDS[self.case.kind]

    @property
    def rows(self) -> Rows:
        """The expected rows."""
        return self.expected[self.kind.key]

    def compute(self, model: Model) -> Rows:
        """Returns the rows that another model computes from the same inputs."""
        return self.kind.compute(model, self.given)

    def spoilt(self, mistake: Mistake) -> Rows:
        """Returns the rows that a copy of the model with a mistake computes."""
        wrong = copy.deepcopy(self.loaded.model)
        mistake(wrong)
        return self.compute(wrong)

    @property
    def has_vectors(self) -> bool:
        """Whether the rows are compared by direction and length; logits are compared number by number."""
        return self.kind.key != "logits"


def audit(golden: Golden) -> str:
    """Returns a summary of a case in one line. Raises AssertionError if it proves too little or cannot be passed."""
    limit = MAX_BYTES_HEADS if golden.case.group == "heads" else MAX_BYTES
    if (size := sum(len(content) for content in golden.case.content().values())) > limit:
        raise AssertionError(f"{size} bytes")
    spread = _check_spread(golden)
    _check_ids(golden)
    exact = golden.compute(copy.deepcopy(golden.loaded.model).double())
    if (rounding := float(np.abs(exact - golden.rows).max())) > EXACT:
        raise AssertionError(f"f32 and f64 differ by {rounding:.1e}")
    in_bf16 = _check_bf16(golden)
    if golden.case.kind == "yes_no":
        _check_prompts(golden)
    if golden.case.group == "base" and golden.case.kind == "classification":
        _check_base_classifier(golden)
    caught = [_check_caught(golden, *mistake) for mistake in _mistakes(golden)]
    least = min(caught)
    return f"{size:6} bytes, {spread}, bf16 {in_bf16}, {len(caught)} mistakes caught, the smallest changes {least:.1e}"


def _check_spread(golden: Golden) -> str:
    """Returns how different the rows of different inputs are. Raises AssertionError if they are too similar."""
    rows = golden.rows
    if not golden.has_vectors:
        deviation = float(rows.std(axis=0).min())
        if deviation < MIN_DEVIATION[golden.case.kind]:
            raise AssertionError(f"different inputs get similar logits, deviation {deviation:.2f}")
        return f"deviation {deviation:.2f}"
    share = float((rows > 0).mean())
    if golden.case.kind == "sparse" and not SHARE_OF_WORDS[0] < share < SHARE_OF_WORDS[1]:
        raise AssertionError(f"{share:.2f} of the weights are above zero")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())
    if likeness > MAX_LIKENESS:
        raise AssertionError(f"different inputs get similar rows, mean cosine {likeness:.3f}")
    return f"likeness {likeness:.2f}"


def _check_ids(golden: Golden) -> None:
    """Raises AssertionError unless tokenizer.json alone gives the expected ids, and every kind of truncation occurs."""
    case, expected = golden.case, golden.expected
    tokenizer = tokenizer_of(case, golden.folder, golden.loaded.max_seq_length)
    ids = np.split(expected["input_ids"], expected["cu_seqlens"][1:-1])
    type_ids = [features.get("token_type_ids") for features in golden.given.features]
    seen = set()
    for item, wanted, types in zip(golden.given.items, ids, type_ids, strict=True):
        encoding = encode(tokenizer, item, golden.loaded.prompt)
        if encoding.ids != wanted.tolist():
            raise AssertionError(f"transformers and tokenizer.json differ on {item!r}")
        if types is not None and not is_decoder(case) and encoding.type_ids != types[0].tolist():
            raise AssertionError(f"transformers and tokenizer.json give different type ids to {item!r}")
        seen.add(_cut(golden, item, encoding.sequence_ids))
    if case.group == "base" and case.kind == "classification" and (missing := CUTS - seen):
        raise AssertionError(f"no input of the kinds {sorted(missing)}")
    if (max(map(len, ids)) < golden.loaded.max_seq_length) != (case.kind == "yes_no"):
        raise AssertionError("no input is cut, or a prompt is")


def _cut(golden: Golden, item: Item, kept: list[int | None]) -> str:
    """Returns how an input was truncated, a name in CUTS."""
    tokenizer = tokenizer_of(golden.case, golden.folder, 1)
    tokenizer.no_truncation()
    whole = encode(tokenizer, item, golden.loaded.prompt).sequence_ids
    cuts = [kept.count(part) < whole.count(part) for part in range(len(item))]
    if len(item) == 1:
        return "text cut" if cuts[0] else "text whole"
    names = {(True, True): "both cut", (True, False): "first cut", (False, True): "second cut"}
    return names.get((cuts[0], cuts[1]), "pair whole")


def _check_bf16(golden: Golden) -> str:
    """Returns the error of torch's own bf16. Raises AssertionError if the tests would fail because of it."""
    case, expected = golden.case, golden.rows
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = golden.compute(golden.loaded.model)
    if not golden.has_vectors:
        is_wide = case.group in ("decoders", "heads")
        return f"max-abs {compare_logits(actual, expected, (2 if is_wide else 1) * LOGITS_BF16):.1e}"
    if case.group != "base":  # their engines are compared by direction; the length of torch's rows does not matter
        actual, expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (actual, expected))
    elif isinstance(list(golden.loaded.model)[-1], Normalize):  # a division in bf16 would break the limit on the norm
        actual = actual / np.linalg.norm(actual, axis=1, keepdims=True)
    return f"cosine {compare(actual, expected, BF16 if case.group == 'base' else BF16_WIDE).cosine:.5f}"


def _mistakes(golden: Golden) -> Iterator[tuple[str, Rows, bool]]:
    """Yields for each mistake its name, its rows, and whether the comparison in bf16 has to find it, too."""
    case, model = golden.case, golden.loaded.model
    for name, mistake in _coarse(golden).items():
        yield name, golden.spoilt(mistake), True
    for name, mistake in _fine(golden).items():
        yield name, golden.spoilt(mistake), False
    for name, changes in case.mistakes.items():
        yield name, golden.compute(load(case, golden.folder, changes).model), True
    if case.kind == "classification" and is_decoder(case) and not case.template:
        yield "query and document change places", golden.kind.compute(model, _swapped(golden)), True
    if case.kind in ("classification", "yes_no") and is_decoder(case):
        count = 1 if case.kind == "yes_no" else 2
        yield f"{count} tokens missing at the end", golden.kind.compute(model, _shorter(golden.given, count)), True
    if case.kind == "yes_no":
        yield "query and document change places", _by_parts(golden, swap=True), True


def _coarse(golden: Golden) -> dict[str, Mistake]:
    case, model = golden.case, golden.loaded.model
    found: dict[str, Mistake] = {f"{pattern} left out": silence(pattern) for pattern in case.silenced}
    if is_decoder(case):
        found |= decoder_mistakes(model)
    elif case.scales != "bert":
        found |= gate_mistakes(model)
    else:
        found |= bert_mistakes(case, model, golden.loaded.max_seq_length)
    if case.kind == "embedding" and case.group != "encoders":
        found |= pooling_mistakes(model)
    if case.kind == "classification" and case.group == "base":
        found |= head_mistakes(golden.folder, model)
    return found


def _fine(golden: Golden) -> dict[str, Mistake]:
    if golden.case.group != "base":
        return {}
    of_head = fine_head_mistakes() if golden.case.kind == "classification" else {}
    return fine_mistakes(golden.loaded.model) | of_head


def _check_caught(golden: Golden, name: str, rows: Rows, in_bf16: bool) -> float:
    """Returns the change that a mistake causes. Raises AssertionError if an engine with the mistake would pass."""
    expected = golden.rows
    change = float(np.abs(rows - expected).max())
    if golden.case.group == "base":
        for check in _checks(golden, in_bf16):
            if _passes(check, rows, expected):
                raise AssertionError(f"{name} would pass, it changes {change:.1e}")
    elif golden.case.group == "encoders":
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
        if float(((rows * expected).sum(axis=1) / lengths).min()) > SAME_COSINE and change < SAME_ABS:
            raise AssertionError(f"{name} would pass, it changes {change:.1e}")
    elif change < VISIBLE * max(1.0, float(np.sqrt((expected.astype(np.float64) ** 2).mean()))):
        raise AssertionError(f"{name} would pass, it changes {change:.1e}")
    return change


def _checks(golden: Golden, in_bf16: bool) -> list[Check]:
    """Returns the checks of the tests, each of which has to fail for a mistake."""
    if golden.has_vectors:
        tolerances = (F32, BF16) if in_bf16 else (F32,)
        return [partial(compare, tolerance=tolerance) for tolerance in tolerances]
    limits = (LOGITS_F32, LOGITS_BF16) if in_bf16 else (LOGITS_F32,)
    return [partial(compare_logits, max_abs=limit) for limit in limits]


def _passes(check: Check, actual: Rows, expected: Rows) -> bool:
    try:
        check(actual, expected)
    except AssertionError:
        return False
    return True


def _check_base_classifier(golden: Golden) -> None:
    """Raises AssertionError unless the rebuilt head is right and many pairs change their logits if swapped."""
    compare_logits(golden.spoilt(rebuilt(lambda head: head)), golden.rows, LOGITS_F32)
    pairs = [row for row, item in enumerate(golden.given.items) if len(set(item)) == 2]
    swapped = golden.kind.compute(golden.loaded.model, _swapped(golden))[pairs]
    differ = np.abs(swapped - golden.rows[pairs]).max(axis=1) > LOGITS_BF16
    if differ.mean() < MIN_SWAPPED:
        raise AssertionError(f"document and query can change places in {(~differ).sum()} of {len(pairs)} pairs")


def _swapped(golden: Golden) -> Inputs:
    items = [item[::-1] for item in golden.given.items]
    return replace(golden.given, features=[tokenize(golden.case, golden.loaded, item) for item in items])


def _shorter(given: Inputs, count: int) -> Inputs:
    """Returns the inputs without their last `count` tokens; at least one token stays."""
    features = [
        {name: value[:, : max(1, value.shape[1] - count)] for name, value in each.items()} for each in given.features
    ]
    return replace(given, features=features)


def _check_prompts(golden: Golden) -> None:
    """Raises AssertionError unless prompts can be encoded by parts, and CrossEncoder gives the same scores.

    Only folders that CrossEncoder wrote are compared with it.
    """
    if float(np.abs(_by_parts(golden) - golden.rows).max()) > EXACT_PARTS:
        raise AssertionError("tokens of the template depend on the texts")
    if not (golden.folder / "modules.json").is_file():
        return
    encoder = CrossEncoder(str(golden.folder), device="cpu", local_files_only=True, model_kwargs=EAGER)
    pairs = _pairs(golden)
    scores = encoder.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=1, show_progress_bar=False)
    if float(np.abs(scores[:, None] - golden.rows).max()) > EXACT_PARTS:
        raise AssertionError(f"CrossEncoder scores {scores}, not {golden.rows[:, 0]}")


def _pairs(golden: Golden, swap: bool = False) -> list[Item]:
    texts = mixed_texts()
    return [(texts[pair], texts[text]) if swap else (texts[text], texts[pair]) for text, pair in golden.given.rows]


def _by_parts(golden: Golden, swap: bool = False) -> Rows:
    """Returns the rows as Qwen3-Reranker's model card computes them: parts of the prompt are encoded separately."""
    before, rest = golden.case.template.split("<Instruct>")
    middle, after = rest.split("{document}")
    features = []
    for pair in _pairs(golden, swap):
        parts = (before, fill(f"<Instruct>{middle}{{document}}", *pair), after)
        ids = [token for part in parts for token in golden.loaded.tokenizer(part)["input_ids"]]
        features.append({"input_ids": torch.tensor([ids])})
    return golden.kind.compute(golden.loaded.model, replace(golden.given, features=features))
