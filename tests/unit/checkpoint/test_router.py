"""Folders with a Router: its default route is served, and only its files are needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import is_small, module_folders, weight_files
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.models.kind import Kind
from bei_core.models.sentence.settings import MODEL_SETTINGS
from bei_core.models.spec import read_spec
from tests.golden.sentence_heads import FOLDERS, OPENSEARCH, SAVED, router

CONFIG = "router_config.json"


def written(folder: Path, name: str, config: object = None) -> Checkpoint:
    FOLDERS[name].write(folder)
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config))
    return Checkpoint(folder, str(folder), "")


def test_the_default_route_takes_the_place_of_the_router(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, "router-in-folders")
    assert module_folders(tmp_path) == ["document_0_Transformer", "document_1_Pooling", "1_Normalize"]
    assert read_spec(checkpoint).kind is Kind.EMBEDDING
    assert read_spec(written(tmp_path / "sparse", "splade-router")).kind is Kind.SPARSE


def test_the_files_of_the_route_are_fetched_and_no_weights_of_others(tmp_path: Path) -> None:
    written(tmp_path, "router-in-folders")
    assert all(is_small(name) for name in SAVED)
    assert is_small("document_0_Transformer/tokenizer.json")
    assert not any("query" in name for name in weight_files(tmp_path))
    assert weight_files(tmp_path)[0] == "document_0_Transformer/model.safetensors"


def test_the_prompt_of_another_route_cannot_be_asked_for(tmp_path: Path) -> None:
    """Its vectors would be those of a document."""
    assert read_spec(written(tmp_path, "router-in-folders")).prompts == {"document": ""}


def test_the_default_prompt_of_another_route_is_refused_unless_it_is_empty(tmp_path: Path) -> None:
    """`encode` would put it before the texts of the default route."""
    checkpoint = written(tmp_path, "router-in-folders")
    settings = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    (tmp_path / MODEL_SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match=f"{MODEL_SETTINGS}: default_prompt_name 'query' is not supported"):
        read_spec(checkpoint)
    (tmp_path / MODEL_SETTINGS).write_text(json.dumps({**settings, "prompts": {"query": ""}}))
    assert read_spec(checkpoint).prompts == {}


def test_the_route_of_texts_comes_before_the_default_route(tmp_path: Path) -> None:
    """As in `_resolve_route_name` of sentence-transformers, where the kind of input may name a route."""
    modules = {"text": ["document_0_Transformer", "document_1_Pooling"], "image": ["image_0_Transformer"]}
    types = dict.fromkeys([*modules["text"], *modules["image"]], "sentence_transformers.models.Transformer")
    config = {"structure": modules, "types": types, "parameters": {"default_route": "image"}}
    written(tmp_path, "router-in-folders", config)
    assert module_folders(tmp_path)[:2] == modules["text"]


def test_a_router_in_a_folder_whose_files_are_not_fetched_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "router-in-folders")
    modules = json.loads((tmp_path / "modules.json").read_bytes())
    modules[0]["path"] = "0_Router"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        UnsupportedModelError, match=r"a Router with a folder of its own \('0_Router'\) is not supported"
    ):
        module_folders(tmp_path)


def test_without_a_default_the_first_route_is_served_if_the_file_allows_it(tmp_path: Path) -> None:
    types = dict(reversed(OPENSEARCH[CONFIG]["types"].items()))
    config = {**router(types), "structure": {"document": ["", "document_1_SpladePooling"], "query": []}}
    checkpoint = written(tmp_path, "splade-router", {**config, "parameters": {"default_route": None}})
    assert read_spec(checkpoint).kind is Kind.SPARSE


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, CheckpointError, f"{CONFIG} is malformed; it needs types, and structure with the default route"),
        ([], CheckpointError, f"{CONFIG} is malformed"),
        ({"types": {}, "structure": []}, CheckpointError, f"{CONFIG} is malformed"),
        ({"types": {}, "structure": {"a": ["x"]}}, CheckpointError, f"{CONFIG} is malformed"),
        ({"types": {"a": "x"}, "structure": {"q": "a"}}, CheckpointError, f"{CONFIG} is malformed"),
        ({"types": {"a": None}, "structure": {"q": ["a"]}}, CheckpointError, f"{CONFIG} is malformed"),
        ({"types": {}, "structure": {"a": []}, "parameters": {"default_route": "b"}}, CheckpointError, "is malformed"),
        (
            router({}, default_route=None, allow_empty_key=False),
            UnsupportedModelError,
            f"{CONFIG}: there is no route text and no default_route, which are the only ones that BEI serves",
        ),
        (
            router({}, route_mappings={"(None, 'image')": "document"}),
            UnsupportedModelError,
            f"{CONFIG}: route_mappings .a route for a kind of input. is not supported",
        ),
        (
            router({"document_0_Transformer": "modeling.Own"}),
            UnsupportedModelError,
            "modules.json: modeling.Own is not a class of sentence-transformers",
        ),
        (
            router({"../document": "sentence_transformers.models.Transformer"}),
            CheckpointError,
            "a module of modules.json is '../document', which is not inside the model's folder",
        ),
    ],
)
def test_what_has_no_route_is_refused(config: Any, error: type[Exception], message: str, tmp_path: Path) -> None:  # noqa: ANN401
    with pytest.raises(error, match=message):
        read_spec(written(tmp_path, "router-in-folders", config))


def test_a_router_without_its_file_and_a_route_without_a_transformer_are_refused(tmp_path: Path) -> None:
    config = router(OPENSEARCH[CONFIG]["types"], default_route="query")
    with pytest.raises(UnsupportedModelError, match="SparseStaticEmbedding is not supported as the first module"):
        read_spec(written(tmp_path, "splade-router", config))
    (tmp_path / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=f"modules.json names a Router, and .*{CONFIG} is missing"):
        read_spec(Checkpoint(tmp_path, str(tmp_path), ""))
