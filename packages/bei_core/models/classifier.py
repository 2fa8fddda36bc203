"""Reads the head of a class of transformers: the labels of a classifier, or the answer tokens of a yes/no reranker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.modules import Classifier, Dense, Module, Scores
from bei_core.models.sentence.settings import MODEL_SETTINGS, ModelSettings
from bei_core.tasks import Scoring
from bei_core.text.published import canonical_tokenizer
from bei_core.text.templates import RerankTemplate

_SCORINGS: Mapping[str, Scoring] = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}


def read_head(
    checkpoint: Checkpoint, config: Mapping[str, Any], architecture: str, template: RerankTemplate | None
) -> list[Module]:
    """Returns the head of the architecture; empty for a class that gives vectors.

    Raises CheckpointError and UnsupportedModelError for malformed labels, or answers that are not tokens.
    """
    if architecture.endswith("ForSequenceClassification"):
        return [_classifier(config)]
    if architecture.endswith("ForTokenClassification"):
        return [msgspec.structs.replace(_classifier(config), scoring="softmax", per_token=True)]
    if architecture == "HF_ColBERT":
        return [Dense(folder="", bias=False, activation="identity")]
    if architecture.endswith("ForCausalLM") and template is not None and template.tokens is not None:
        no, yes = template.tokens
        no_id = None if no is None else _token_id(checkpoint, no)
        return [Classifier(("LABEL_0",), "sigmoid", yes_no_ids=(no_id, _token_id(checkpoint, yes)))]
    return []


def reranker_class(architecture: str, config: Mapping[str, Any]) -> str:
    """Returns the class if it is a ...ForSequenceClassification with one label, else "". Raises as `read_head`."""
    is_classifier = architecture.endswith("ForSequenceClassification")
    return architecture if is_classifier and len(_classifier(config).labels) == 1 else ""


def _token_id(checkpoint: Checkpoint, token: str) -> int:
    """Returns the id of a token. Raises CheckpointError if the vocabulary does not have it."""
    file = msgspec.json.decode(canonical_tokenizer(checkpoint.folder / checkpoint.first_module).text)
    added = {str(entry["content"]): int(entry["id"]) for entry in file.get("added_tokens") or ()}
    found = added.get(token, file["model"]["vocab"].get(token) if isinstance(file["model"]["vocab"], dict) else None)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.source}: the tokenizer has no token {token!r}, but the rerank_template has it as an answer"
        )
    return int(found)


def scores_of_modules(config: Mapping[str, Any], count: int) -> Scores:
    """Returns labels and scoring of a CrossEncoder whose modules give `count` scores. Raises as `read_head`."""
    named = config if len(_label_names(config)) == count else {**config, "id2label": None, "num_labels": count}
    found = _classifier(named)
    return Scores(found.labels, found.scoring)


def _classifier(config: Mapping[str, Any]) -> Classifier:
    """Returns labels and scoring by the rules of transformers' pipeline (`pipelines/text_classification.py`)."""
    names, count = _label_names(config), config.get("num_labels")
    count = len(names) or (2 if count is None else count)
    if not isinstance(count, int) or not 1 <= count <= 1 << 20:  # more labels would cost memory for their names
        raise UnsupportedModelError(f"config.json: num_labels {count!r} is not a number from 1 to {1 << 20}")
    labels = tuple(names.get(index, f"LABEL_{index}") for index in range(count))
    by_problem: dict[Any, Scoring] = {
        "regression": "none",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    problem = config.get("problem_type")
    scoring = "sigmoid" if count == 1 and problem != "regression" else by_problem.get(str(problem), "softmax")
    return Classifier(labels, scoring)


def _label_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Returns the names of the labels in config.json, by number. Raises CheckpointError if `id2label` is malformed."""
    given = config.get("id2label") or {}
    try:
        return {int(index): str(name) for index, name in given.items()}
    except (AttributeError, ValueError) as error:
        raise CheckpointError(
            f"config.json: id2label {str(given)[:100]} is not an object of numbers to names"
        ) from error


def scored(classifier: Classifier, config: Mapping[str, Any], settings: ModelSettings) -> Classifier:
    """Returns the classifier with the scoring that a CrossEncoder's files name: `activation_fn`, else config.json's.

    For a model with several labels, the files of a CrossEncoder always name Identity, but all other tools give their
    softmax. So Identity changes nothing then. Raises UnsupportedModelError for another function, and for a yes/no
    reranker whose logits have a soft cap.
    """
    cap = config.get("final_logit_softcapping")
    if classifier.yes_no_ids is not None and cap is not None:
        raise UnsupportedModelError(
            f"config.json: final_logit_softcapping {cap!r} (of {config['architectures'][0]}) is not supported for a "
            "reranker that answers yes or no"
        )
    named = config.get("sentence_transformers")
    is_cross_encoder = settings.is_cross_encoder or isinstance(named, dict)
    path, file = settings.activation_fn, MODEL_SETTINGS
    if path is None:
        path = named.get("activation_fn") if isinstance(named, dict) else None
        path, file = path or config.get("sbert_ce_default_activation_function"), "config.json"
    scoring = _activation_scoring(path, file)
    if scoring is None and is_cross_encoder and len(classifier.labels) == 1:
        scoring = "sigmoid"  # CrossEncoder's default, also for problem_type "regression"
    if scoring is None or (scoring == "none" and len(classifier.labels) > 1):
        return classifier
    return msgspec.structs.replace(classifier, scoring=scoring)


def _activation_scoring(path: object, file: str) -> Scoring | None:
    """Returns the scoring for the name of an activation function; None if there is no name.

    Raises UnsupportedModelError for another function.
    """
    if path is None:
        return None
    scoring = _SCORINGS.get(str(path).rpartition(".")[2]) if str(path).startswith("torch.") else None
    if scoring is None:
        raise UnsupportedModelError(
            f"{file}: activation function {path!r} is not supported; supported are torch.nn's {', '.join(_SCORINGS)}"
        )
    return scoring
