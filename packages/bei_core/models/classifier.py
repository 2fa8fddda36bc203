"""The head that a class of transformers has by itself: a classifier's labels, or the answers of a yes/no reranker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.modules import Classifier, Dense, Module
from bei_core.tasks import Scoring
from bei_core.text.published import canonical_tokenizer
from bei_core.text.templates import RerankTemplate


def read_head(
    checkpoint: Checkpoint, config: Mapping[str, Any], architecture: str, template: RerankTemplate | None
) -> list[Module]:
    """The head that the architecture itself has; empty for a class that is used for its vectors."""
    if architecture.endswith("ForSequenceClassification"):
        return [_classifier(config)]
    if architecture.endswith("ForTokenClassification"):
        return [msgspec.structs.replace(_classifier(config), scoring="softmax", per_token=True)]
    if architecture == "HF_ColBERT":
        return [Dense(folder="", bias=False, activation="identity")]
    if architecture.endswith("ForCausalLM") and template is not None and template.tokens is not None:
        no, yes = (_token_id(checkpoint, token) for token in template.tokens)
        return [Classifier(("LABEL_0",), "sigmoid", yes_no_ids=(no, yes))]
    return []


def _token_id(checkpoint: Checkpoint, token: str) -> int:
    """The id of a word that is one token. Raises CheckpointError if it is not."""
    file = msgspec.json.decode(canonical_tokenizer(checkpoint.folder).text)
    added = {str(entry["content"]): int(entry["id"]) for entry in file.get("added_tokens") or ()}
    found = added.get(token, file["model"]["vocab"].get(token) if isinstance(file["model"]["vocab"], dict) else None)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.source}: the tokenizer has no token {token!r}, which the reranker answers with"
        )
    return int(found)


def _classifier(config: Mapping[str, Any]) -> Classifier:
    """Labels and scoring by the rules of transformers' pipeline (`pipelines/text_classification.py`)."""
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    count = len(names) or int(config.get("num_labels") or 2)
    if not 1 <= count <= 1 << 20:  # the names of more would cost memory
        raise UnsupportedModelError(f"config.json: num_labels {count} is not a number from 1 to {1 << 20}")
    labels = tuple(names.get(index, f"LABEL_{index}") for index in range(count))
    by_problem: dict[Any, Scoring] = {
        "regression": "none",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    problem = config.get("problem_type")
    scoring = "sigmoid" if count == 1 and problem != "regression" else by_problem.get(problem, "softmax")
    return Classifier(labels, scoring)
