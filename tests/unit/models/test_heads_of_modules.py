"""CrossEncoders whose modules give the scores: labels, settings that have no effect, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.head_tensors import find_head_tensors
from bei_core.models.kind import Kind
from bei_core.models.modules import Pooling
from bei_core.models.spec import ModelSpec, load_spec, read_spec, save_spec
from tests.golden.sentence import BERT, CONFIG, HIDDEN, Folder, linear
from tests.golden.sentence_heads import ETTIN, ETTIN_WEIGHTS, entries, scores

LAST = "4_Dense/config.json"


def checkpoint_of(folder: Path, files: dict[str, Any] | None = None) -> Checkpoint:
    Folder({**ETTIN, **(files or {})}, ETTIN_WEIGHTS, "cross-encoder").write(folder)
    return Checkpoint(folder, str(folder), "")


def kept(spec: ModelSpec, folder: Path) -> ModelSpec:
    save_spec(spec, folder / "spec.json")
    return load_spec(folder / "spec.json")


def test_one_score_is_a_reranker_by_the_activation_of_its_file_and_an_engine_keeps_it(tmp_path: Path) -> None:
    spec = read_spec(checkpoint_of(tmp_path))
    assert spec.classifier is not None
    assert (spec.kind, spec.classifier.labels, spec.classifier.scoring) == (Kind.RERANKER, ("LABEL_0",), "none")
    assert kept(spec, tmp_path) == spec


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"0": "no", "1": "maybe", "2": "yes"}}, ("no", "maybe", "yes")),
        ({"id2label": {"0": "LABEL_0"}}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
def test_several_scores_have_the_names_in_config_json(
    tmp_path: Path, named: dict[str, Any], labels: tuple[str, ...]
) -> None:
    spec = read_spec(checkpoint_of(tmp_path, {LAST: scores(3, HIDDEN), "config.json": {**CONFIG, **named}}))
    assert spec.classifier is not None
    assert (spec.kind, spec.classifier.labels, spec.classifier.scoring) == (Kind.CLASSIFIER, labels, "softmax")


def test_several_scores_have_the_scoring_of_the_problem_type(tmp_path: Path) -> None:
    config = {**CONFIG, "problem_type": "multi_label_classification"}
    spec = read_spec(checkpoint_of(tmp_path, {LAST: scores(3, HIDDEN), "config.json": config}))
    assert spec.classifier is not None
    assert spec.classifier.scoring == "sigmoid"


def test_the_setting_pooling_has_no_effect(tmp_path: Path) -> None:
    spec = read_spec(checkpoint_of(tmp_path), pooling="mean")
    assert isinstance(spec.modules[0], Pooling)
    assert spec.modules[0].modes == ("cls",)
    assert spec.pools_by("mean")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({LAST: {**scores(1, HIDDEN), "out_features": None}}, f"{LAST}: module_output_name 'scores' is supported for"),
        ({"2_Dense/config.json": scores(1, HIDDEN)}, "2_Dense/config.json: module_output_name 'scores' is supported"),
        ({LAST: {**scores(1, HIDDEN), "module_input_name": "token_embeddings"}}, "4_Dense/config.json: module_output_"),
        (
            {
                "modules.json": entries("sentence_transformers.Transformer", "sentence_transformers.Dense"),
                "1_Dense/config.json": scores(1, HIDDEN),
            },
            "1_Dense/config.json: module_output_name 'scores' is supported for the last module, after a Pooling",
        ),
    ],
)
def test_scores_that_are_not_the_output_of_pooled_vectors_are_refused(
    files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_spec(checkpoint_of(tmp_path, files))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, HIDDEN), "out_features is 2, but linear.weight has 1 rows"),
        ((1, HIDDEN + 1), f"in_features is {HIDDEN + 1}, but linear.weight has {HIDDEN} columns"),
    ],
)
def test_a_matrix_of_another_shape_than_the_file_says_is_refused(
    sizes: tuple[int, int], message: str, tmp_path: Path
) -> None:
    """The module of sentence-transformers cannot load it either."""
    checkpoint = checkpoint_of(tmp_path, {LAST: scores(*sizes)})
    with pytest.raises(CheckpointError, match=f"4_Dense/config.json: {message}"):
        find_head_tensors(checkpoint, read_spec(checkpoint))


def test_a_late_interaction_model_may_have_the_transformer_alone_in_modules_json(tmp_path: Path) -> None:
    """As mixedbread-ai/mxbai-colbert-large-v1, whose projection is beside the transformer's tensors."""
    files = {
        "config.json": {**CONFIG, "architectures": ["HF_ColBERT"]},
        "modules.json": entries("sentence_transformers.models.Transformer"),
    }
    bert = {f"bert.{name}": shape for name, shape in BERT.items()}
    Folder(files, {"": {**bert, "linear.weight": linear(6)["linear.weight"]}}).write(tmp_path)
    spec = read_spec(Checkpoint(tmp_path, str(tmp_path), ""))
    assert spec.kind is Kind.LATE_INTERACTION
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UnsupportedModelError, match="no module follows the transformer"):
        read_spec(Checkpoint(tmp_path, str(tmp_path), ""))
