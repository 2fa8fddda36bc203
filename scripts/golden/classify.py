"""What transformers makes of the golden classifiers, one input at a time, in f32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scripts.golden.spec import Model

ALONE = -1  # in place of a second text's position
NUM_BRIEF = 60  # the texts that are short enough to be queries
NUM_EACH = 6  # brief pairs, pairs of a query with a document, and texts alone

Features: TypeAlias = dict[str, Any]  # name -> i64[1, n], as transformers' tokenizer returns them
Input: TypeAlias = tuple[str, ...]  # a text, or a text and its pair


@dataclass(frozen=True)
class Classifier:
    """A classifier of transformers with its own tokenizer."""

    model: Model
    tokenizer: Model
    max_seq_length: int

    @property
    def labels(self) -> list[str]:
        """The names in the order of the logits."""
        names = self.model.config.id2label
        return [names[position] for position in range(len(names))]


@dataclass(frozen=True)
class Classified:
    """Token ids, type ids and logits of some inputs, as they are stored."""

    text_rows: npt.NDArray[np.int32]  # [N], positions in mixed.jsonl
    pair_rows: npt.NDArray[np.int32]  # [N], or ALONE
    input_ids: npt.NDArray[np.int32]  # [T]
    type_ids: npt.NDArray[np.int32]  # [T]
    cu_seqlens: npt.NDArray[np.int32]  # [N + 1]
    logits: npt.NDArray[np.float32]  # [N, L]


def load(folder: Path) -> Classifier:
    """The folder in f32. Raises unless it holds every weight, and none that transformers would not leave out itself."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    unknown = [name for name in report["unexpected_keys"] if "pooler" not in name and "position_ids" not in name]
    if report["missing_keys"] or report["mismatched_keys"] or unknown:
        raise AssertionError(f"{folder.name}: transformers did not read every weight: {report}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    table = model.config.max_position_embeddings
    if hasattr(model.base_model.embeddings, "padding_idx"):
        table -= model.base_model.embeddings.padding_idx + 1
    return Classifier(model.eval(), tokenizer, min(tokenizer.model_max_length, table))


def choose_inputs(texts: list[str], number: int) -> list[tuple[int, int]]:
    """Positions of text and pair (or ALONE) of case `number`: all ways to cut a pair, and ordinary ones."""
    by_length = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))
    shortest, *brief = by_length[:NUM_BRIEF]
    *others, second, longest = by_length[NUM_BRIEF:]
    queries = [brief[(number * NUM_EACH + step) % len(brief)] for step in range(2 * NUM_EACH)]
    documents = [others[(number * 2 * NUM_EACH + step * 7) % len(others)] for step in range(2 * NUM_EACH)]
    chosen = [(shortest, longest), (longest, shortest), (second, longest), (longest, second), (longest, longest)]
    chosen += zip(queries[:NUM_EACH], queries[NUM_EACH:], strict=True)
    chosen += zip(queries[NUM_EACH:], documents[:NUM_EACH], strict=True)
    chosen.append((queries[NUM_EACH], queries[0]))  # the first of these pairs the other way round
    alone = [shortest, longest, *queries[:2], *documents[NUM_EACH:]]
    return sorted([*chosen, *((row, ALONE) for row in alone)])


def inputs_of(texts: list[str], rows: Sequence[tuple[int, int]]) -> list[Input]:
    """The texts at these positions."""
    return [(texts[text],) if pair == ALONE else (texts[text], texts[pair]) for text, pair in rows]


def encode(classifier: Classifier, item: Input) -> Features:
    """What the tokenizer gives the model for one input, cut to the model's length."""
    options = {"truncation": True, "max_length": classifier.max_seq_length, "return_tensors": "pt"}
    return dict(classifier.tokenizer(*item, **options))


def logits_of(model: Model, features: Sequence[Features]) -> npt.NDArray[np.float32]:
    """[N, L], each input computed alone."""
    with torch.inference_mode():
        rows = [model(**each).logits[0].float().numpy() for each in features]
    return np.stack(rows)


def expect(classifier: Classifier, texts: list[str], rows: list[tuple[int, int]]) -> Classified:
    """Ids, type ids and logits of the inputs at `rows`."""
    features = [encode(classifier, item) for item in inputs_of(texts, rows)]
    ids = [each["input_ids"][0].numpy().astype(np.int32) for each in features]
    type_ids = [
        each["token_type_ids"][0].numpy().astype(np.int32) if "token_type_ids" in each else np.zeros_like(of_input)
        for each, of_input in zip(features, ids, strict=True)
    ]
    return Classified(
        text_rows=np.array([text for text, _ in rows], np.int32),
        pair_rows=np.array([pair for _, pair in rows], np.int32),
        input_ids=np.concatenate(ids),
        type_ids=np.concatenate(type_ids),
        cu_seqlens=np.cumsum([0, *map(len, ids)], dtype=np.int32),
        logits=logits_of(classifier.model, features),
    )


def save(expected: Classified, path: Path) -> None:
    """`path`: a safetensors of the fields."""
    save_file(dict(vars(expected)), path)
