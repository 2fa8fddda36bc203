"""Weights in pytorch_model.bin, from each source of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from bei_core.checkpoint import resolve
from bei_core.errors import CheckpointError
from bei_core.storage.backends import FileSystem
from tests.hub import Hub, as_bytes, f32, pack, write
from tests.stores import WEIGHTS, files_of, put
from tests.torch_file import PICKLED, dense
from tests.unit.checkpoint import test_hub, test_object_stores, test_urls
from tests.unit.checkpoint.test_checkpoint import at, index
from tests.unit.checkpoint.test_hub import hub
from tests.unit.checkpoint.test_object_stores import folder, s3, server
from tests.unit.checkpoint.test_urls import tar, web
from tests.web import File, Web

__all__ = ["folder", "hub", "s3", "server", "web"]


def test_pickled_weights_are_read_where_there_are_no_safetensors(tmp_path: Path) -> None:
    folder = write(tmp_path, PICKLED)
    checkpoint = resolve(str(folder)).check()
    assert checkpoint.tensors().f32("dense.weight").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.tensors("2_Dense").names() == ["linear.weight"]
    write(folder, {"2_Dense/pytorch_model.bin": dense(8)})
    changed = resolve(str(folder))
    assert changed.revision != checkpoint.revision
    write(folder, {"2_Dense/model.safetensors": pack({"linear.weight": f32(8)})})
    both = resolve(str(folder))
    assert both.revision != changed.revision
    write(folder, {"2_Dense/pytorch_model.bin": b"not read", "2_Dense/pytorch_model.bin.index.json": b"not read"})
    assert resolve(str(folder)).revision == both.revision


def test_pickled_shards_are_one_model(tmp_path: Path) -> None:
    one, two = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    write(tmp_path, {"pytorch_model.bin.index.json": index(**{"linear.weight": one, "dense.weight": two})})
    write(tmp_path, {one: dense(7), two: PICKLED["pytorch_model.bin"]})
    assert resolve(str(tmp_path)).tensors().names() == ["dense.weight", "linear.weight"]
    (tmp_path / two).write_bytes(dense(7)[:-1])
    with pytest.raises(CheckpointError, match=f"{two} cannot be read: it is no zip archive"):
        at(tmp_path).tensors()
    write(tmp_path, {"pytorch_model.bin.index.json": index(a="training_args.bin")})
    with pytest.raises(CheckpointError, match=r"names training_args\.bin, which is not a \.bin file of weights"):
        at(tmp_path).tensors()


def test_the_hub_gives_pickled_weights_only_where_there_are_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    unwanted = {"training_args.bin": b"no", "1_Pooling/pytorch_model.bin": b"none", "2_Dense/model.pt": b"not it"}
    files = {**PICKLED, "tokenizer.json": {"a": 1}}
    hub.add(test_hub.REPO, as_bytes({**files, **unwanted}))
    checkpoint = test_hub.fetch(hub, tmp_path / "a")
    assert hub.files_read() == {*files}
    assert checkpoint.tensors().names() == ["dense.weight"]
    assert test_hub.fetch(hub, tmp_path / "a", offline=True) == checkpoint
    hub.requests.clear()
    hub.add(test_hub.REPO, as_bytes({**files, **unwanted, "model.safetensors": WEIGHTS}))
    checkpoint = test_hub.fetch(hub, tmp_path / "b")
    assert hub.files_read() == {*files, "model.safetensors"} - {"pytorch_model.bin"}
    assert checkpoint.tensors("2_Dense").names() == ["linear.weight"]


def test_the_hub_gives_pickled_shards(hub: Hub, tmp_path: Path) -> None:
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    names = dict(zip(("linear.weight", "dense.weight"), shards, strict=True))
    files = {shards[0]: dense(1), shards[1]: PICKLED["pytorch_model.bin"]}
    index = {"pytorch_model.bin.index.json": {"weight_map": names}}
    hub.add(test_hub.REPO, as_bytes({"config.json": {}, **index, **files, "training_args.bin": b"no"}))
    assert test_hub.fetch(hub, tmp_path).tensors().names() == ["dense.weight", "linear.weight"]
    assert hub.files_read() == {"config.json", *index, *shards}


def test_a_bucket_gives_pickled_weights_only_where_there_are_no_safetensors(
    s3: FileSystem, folder: str, tmp_path: Path
) -> None:
    put(s3, folder, as_bytes({**PICKLED, "training_args.bin": b"no", "2_Dense/training_args.bin": b"no"}))
    first = test_object_stores.fetch(folder, tmp_path)
    assert files_of(first) == {*PICKLED}
    assert first.tensors().names() == ["dense.weight"]
    put(s3, folder, {"model.safetensors": WEIGHTS, "pytorch_model.bin.index.json": b"{}"})
    second = test_object_stores.fetch(folder, tmp_path)
    assert files_of(second) == {*PICKLED, "model.safetensors"} - {"pytorch_model.bin"}
    assert second.tensors().names() == ["a", "b"]
    assert second.tensors("2_Dense").names() == ["linear.weight"]
    put(s3, folder, {"pytorch_model.bin": b"another"})
    assert test_object_stores.fetch(folder, tmp_path) == second  # what is not fetched is not in the revision
    put(s3, folder, {"2_Dense/pytorch_model.bin": dense(8)})
    third = test_object_stores.fetch(folder, tmp_path)
    assert third.revision != second.revision
    assert float(third.tensors("2_Dense").f32("linear.weight")[0]) == 8


def test_an_archive_gives_pickled_weights_only_where_there_are_no_safetensors(web: Web, tmp_path: Path) -> None:
    web.files[test_urls.PATH] = File(
        tar(as_bytes({**PICKLED, "training_args.bin": b"", "2_Dense/training_args.bin": b""}))
    )
    checkpoint = test_urls.fetch(web, tmp_path / "a")
    assert files_of(checkpoint) == {*PICKLED}
    assert checkpoint.tensors().names() == ["dense.weight"]
    web.files[test_urls.PATH] = File(tar(as_bytes({**PICKLED, "model.safetensors": WEIGHTS})))
    checkpoint = test_urls.fetch(web, tmp_path / "b")
    assert files_of(checkpoint) == {*PICKLED, "model.safetensors"} - {"pytorch_model.bin"}
    assert checkpoint.tensors().names() == ["a", "b"]
    assert checkpoint.tensors("2_Dense").names() == ["linear.weight"]
