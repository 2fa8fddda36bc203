"""The folders of sentence-transformers' modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.folder import is_small, weight_files
from tests.hub import f32, pack, write


def at(folder: Path) -> Checkpoint:
    return Checkpoint(folder, str(folder), "")


@pytest.mark.parametrize("place", ["0_StaticEmbedding", "transformer"])
def test_a_first_module_with_a_folder_has_the_weights_and_the_tokenizer(tmp_path: Path, place: str) -> None:
    modules = [{"path": place}, {"path": "1_Dense"}]
    files = {f"{place}/model.safetensors": pack({"x": f32(1)}), "1_Dense/model.safetensors": pack({"y": f32(1)})}
    folder = write(tmp_path, {"modules.json": modules, **files})
    checkpoint = at(folder).check()
    assert checkpoint.tensors().names() == ["x"]
    assert checkpoint.tensors("1_Dense").names() == ["y"]
    assert checkpoint.in_first_module("tokenizer.json") == f"{place}/tokenizer.json"
    assert weight_files(folder) == [f"{place}/model.safetensors", "1_Dense/model.safetensors"]


@pytest.mark.parametrize("path", ["", ".", "./"])
def test_a_first_module_may_name_the_folder_of_the_model(tmp_path: Path, path: str) -> None:
    folder = write(tmp_path, {"modules.json": [{"path": path}], "model.safetensors": pack({"x": f32(1)})})
    assert at(folder).check().tensors().names() == ["x"]
    assert at(folder).in_first_module("tokenizer.json") == "tokenizer.json"


def test_the_tokenizer_of_a_first_module_with_a_folder_is_fetched() -> None:
    assert is_small("0_StaticEmbedding/tokenizer.json")
    assert is_small("0_Transformer/sentence_bert_config.json")
    assert not is_small("onnx/tokenizer.json")
