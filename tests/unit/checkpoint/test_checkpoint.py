from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.errors import CheckpointError
from tests.hub import Stored, f32, handmade, pack, write


def index(**shards: str) -> dict[str, object]:
    return {"metadata": {}, "weight_map": shards}


def at(folder: Path) -> Checkpoint:
    """A checkpoint of any folder, also one that `resolve` refuses."""
    return Checkpoint(folder=folder, source=str(folder), revision="")


MODEL: dict[str, object] = {
    "config.json": {"architectures": ["BertModel"]},
    "tokenizer.json": {},
    "model.safetensors": pack({"a": f32(1, 2), "b": f32(3)}),
}

# --- A local folder


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    checkpoint = resolve(str(write(tmp_path, MODEL)))
    assert (checkpoint.folder, checkpoint.source) == (tmp_path, str(tmp_path))
    assert checkpoint.read_json("config.json") == {"architectures": ["BertModel"]}
    assert checkpoint.tensors().names() == ["a", "b"]
    assert resolve(str(tmp_path), "some-revision") == checkpoint


def test_the_digest_covers_the_files_of_the_model_only(tmp_path: Path) -> None:
    first, copy = write(tmp_path / "first", MODEL), write(tmp_path / "copy", MODEL)
    os.utime(copy / "config.json", (0, 0))
    write(copy, {"README.md": b"not the model", "pytorch_model.bin": b"nor this", ".git/config.json/x": b""})
    digest = resolve(str(first)).revision
    assert resolve(str(copy)).revision == digest
    assert len(digest) == 64

    changes: list[dict[str, object]] = [
        {"config.json": {"architectures": ["RobertaModel"]}},
        {"1_Pooling/config.json": {}},
        {"model.safetensors": pack({"a": f32(1, 2), "c": f32(3)})},
        {"model.safetensors": pack({"a": f32(1, 2), "b": f32(4)})},  # other weights under the same header
    ]
    digests = [resolve(str(write(tmp_path / str(i), {**MODEL, **change}))).revision for i, change in enumerate(changes)]
    assert len({digest, *digests}) == 1 + len(changes)


def test_the_digest_reads_little_of_large_tensors(tmp_path: Path) -> None:
    weights = np.zeros(10_000, np.float32)
    digests = []
    for changed in (None, 9_999, 1_000):
        array = weights.copy()
        if changed is not None:
            array[changed] = 1
        folder = write(tmp_path / str(changed), {**MODEL, "model.safetensors": pack({"a": ("F32", array)})})
        digests.append(resolve(str(folder)).revision)
    assert digests[0] == digests[1] != digests[2]  # documented: only a tensor's beginning is looked at


def test_weights_of_modules_and_shards_are_in_the_digest(tmp_path: Path) -> None:
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "2_Dense"}]
    files = {**MODEL, "modules.json": modules, "2_Dense/model.safetensors": pack({"linear.weight": f32(1)})}
    other = {**files, "2_Dense/model.safetensors": pack({"linear.weight": f32(2)})}
    assert resolve(str(write(tmp_path / "x", files))).revision != resolve(str(write(tmp_path / "y", other))).revision


@pytest.mark.parametrize(
    ("model_id", "said"),
    [
        ("/no/such/folder", "/no/such/folder is not a folder"),
        ("./here", "./here is not a folder"),
        ("a/b/c", "a/b/c is not a folder"),
        ("a b", "neither a folder nor a Hugging Face repository (owner/name)"),
        ("file:///no/such/folder", "file:///no/such/folder is not a folder"),
        (
            "ftp://x.example/m?signature=sesame",
            "ftp://x.example/m: checkpoints cannot be fetched by ftp; give a folder",
        ),
        ("baseten-training://job", "BASETEN_TRAINING) are in Baseten's own storage"),
    ],
)
def test_what_is_neither_a_folder_nor_a_repository_is_refused(model_id: str, said: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        resolve(model_id, offline=True)
    assert said in str(refused.value)
    assert "sesame" not in str(refused.value)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        resolve(str(write(tmp_path, MODEL) / "config.json"))


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, MODEL)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json: Permission denied"):
        resolve(str(tmp_path))


# --- Its JSON files


def test_a_missing_file_is_named_and_an_optional_one_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        at(tmp_path).read_json("config.json")
    assert at(tmp_path).read_json("modules.json", required=False) is None


def test_json_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": b'{"a": NaN, "b": Infinity}'})
    assert at(tmp_path).read_json("config.json")["b"] == float("inf")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_malformed_json_is_named(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        at(write(tmp_path, {"config.json": text})).read_json("config.json")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", [], r"config\.json is not a JSON object"),
        ("config.json", "BertModel", r"config\.json is not a JSON object"),
        ("1_Pooling/config.json", 1, r"1_Pooling/config\.json is not a JSON object"),
        ("modules.json", {}, r"modules\.json is not a JSON list"),
    ],
)
def test_json_of_another_kind_is_named(tmp_path: Path, name: str, content: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        at(write(tmp_path, {name: content})).read_json(name)


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b.json", "", "..\\config.json", "a\0b"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", MODEL)
    write(tmp_path, {"config.json": {}})
    with pytest.raises(CheckpointError, match="not inside"):
        at(folder).read_json(name)
    if name:
        with pytest.raises(CheckpointError, match="not inside"):
            at(folder).tensors(name)
        with pytest.raises(CheckpointError, match="not inside"):
            resolve(str(write(folder, {"modules.json": [{"path": name}]})))
        with pytest.raises(CheckpointError, match="not inside"):
            at(write(tmp_path / "sharded", {"model.safetensors.index.json": index(a=name)})).tensors()


# --- Its weights

BITS = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=8)


@given(BITS)
def test_bfloat16_is_exact(tmp_path_factory: pytest.TempPathFactory, bits: list[int]) -> None:
    stored = np.array(bits, np.uint16)
    tensors = at(write(tmp_path_factory.mktemp("m"), {"model.safetensors": pack({"x": ("BF16", stored)})})).tensors()
    assert tensors.dtype("x") == "BF16"
    np.testing.assert_array_equal(tensors.raw("x"), stored)
    expected = np.frombuffer(b"".join(b"\0\0" + bit.to_bytes(2, "little") for bit in bits), "<f4")
    np.testing.assert_array_equal(tensors.f32("x").view(np.uint32), expected.view(np.uint32))  # NaNs to the bit


@given(BITS)
def test_float16_is_exact(tmp_path_factory: pytest.TempPathFactory, bits: list[int]) -> None:
    stored = np.array(bits, np.uint16).view(np.float16)
    tensors = at(write(tmp_path_factory.mktemp("m"), {"model.safetensors": pack({"x": ("F16", stored)})})).tensors()
    np.testing.assert_array_equal(tensors["x"], stored)
    np.testing.assert_array_equal(tensors.f32("x"), stored.astype(np.float32))
    assert tensors.f32("x").dtype == np.float32


def test_tensors_keep_their_shape_dtype_and_values(tmp_path: Path) -> None:
    arrays: dict[str, Stored] = {
        "matrix": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
        "scalar": ("BF16", np.array(0x3FC0, np.uint16)),
        "none": ("F32", np.zeros((0, 4), np.float32)),
        "ids": ("I64", np.array([-1, 1 << 40])),
        "wide": ("F64", np.array([0.1])),
        "byte": ("U8", np.array([7], np.uint8)),
    }
    tensors = at(write(tmp_path, {"model.safetensors": pack(arrays)})).tensors()
    assert tensors.names() == sorted(arrays) == sorted(tensors)
    assert len(tensors) == len(arrays)
    for name, (kind, array) in arrays.items():
        assert tensors.dtype(name) == kind
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors.raw(name), array)
    assert (tensors.f32("scalar").shape, float(tensors.f32("scalar"))) == ((), 1.5)
    assert tensors.f32("wide")[0] == np.float32(0.1)
    with pytest.raises(CheckpointError, match="ids is I64, not one of BF16, F16, F32, F64"):
        tensors.f32("ids")


def test_the_safetensors_package_writes_and_reads_the_same(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.array([1, 2], np.float16),
        "z": np.array(3),
    }
    tensors = at(write(tmp_path, {"model.safetensors": safetensors.numpy.save(arrays, {"format": "pt"})})).tensors()
    assert isinstance(tensors, Mapping)
    again = safetensors.numpy.load(pack({name: (tensors.dtype(name), tensors[name]) for name in tensors}))
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
        np.testing.assert_array_equal(again[name], array)


def test_float32_is_a_view_of_the_file_and_cannot_be_written(tmp_path: Path) -> None:
    tensors = at(write(tmp_path, {"model.safetensors": pack({"x": f32(1, 2)})})).tensors()
    assert np.shares_memory(tensors.f32("x"), tensors.raw("x"))
    assert not tensors.f32("x").flags.writeable
    kept = tensors.f32("x")
    del tensors
    np.testing.assert_array_equal(kept, [1, 2])  # the mapping lives as long as its arrays


def test_a_tensor_that_is_not_aligned_is_read_all_the_same(tmp_path: Path) -> None:
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "x": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    data = b"\x07" + np.float32(2.5).tobytes()
    tensors = at(write(tmp_path, {"model.safetensors": handmade(header, data)})).tensors()
    assert tensors.f32("x").flags.aligned
    assert float(tensors.f32("x")[0]) == 2.5


def test_a_tensor_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    tensors = at(write(tmp_path, {"model.safetensors": pack({"encoder.weight": f32(1)})})).tensors()
    for read in (tensors.f32, tensors.raw, tensors.dtype):
        with pytest.raises(CheckpointError, match=r"no tensor encoder\.weigth; the nearest is encoder\.weight"):
            read("encoder.weigth")
    assert "encoder.weigth" not in tensors
    assert tensors.get("encoder.weigth") is None


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    whole = pack({"a": f32(1, 2), "b": ("BF16", np.array([1], np.uint16))})
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            at(tmp_path).tensors()
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="1 bytes that belong to no tensor"):
        at(tmp_path).tensors()


A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([], "header is not a JSON object"),
        ({"a": 1}, "the header's a"),
        ({"a": {**A, "dtype": "F4"}}, "a is F4; known are"),
        ({"a": {**A, "shape": [2]}}, r"a is F32 \[2\] but takes bytes 0 to 4"),
        ({"a": {**A, "shape": [-1, -1]}}, "but takes"),
        ({"a": {**A, "data_offsets": [4, 0]}}, "but takes"),
        ({"a": {**A, "data_offsets": [-4, 0]}}, "but takes"),
        ({"a": {**A, "data_offsets": [4, 8]}}, "begins at byte 4, not at 0"),
        ({"a": A, "b": A}, "begins at byte 0, not at 4"),
        ({"a": A, "b": {**A, "data_offsets": [4, 8]}}, "truncated: 4 of its 8 bytes"),
        (f'{{"a": {json.dumps(A)}, "a": {json.dumps(A)}}}'.encode(), "'a' occurs twice"),
    ],
)
def test_a_header_with_wrong_offsets_is_refused(tmp_path: Path, header: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        at(write(tmp_path, {"model.safetensors": handmade(header, b"1234")})).tensors()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([1] * 65, "a has 65 dimensions; at most 32 are possible"),
        ([1] * 1_000_000, "a has 1000000 dimensions; at most 32 are possible"),
        ([10**30], "a has a shape of more than 4611686018427387904 bytes"),
        ([10**30, 0], "a has a shape of more than 4611686018427387904 bytes"),
        ([10**4000] * 32, "a has a shape of more than 4611686018427387904 bytes"),
    ],
    ids=["65 dimensions", "a million dimensions", "giant", "giant and empty", "giant numbers"],
)
def test_a_shape_that_no_array_can_have_is_refused_at_once(tmp_path: Path, shape: list[int], said: str) -> None:
    started = time.process_time()
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {said}") as refused:
        at(write(tmp_path, {"model.safetensors": handmade({"a": {**A, "shape": shape}}, b"1234")})).tensors()
    assert len(str(refused.value)) < 1000
    assert time.process_time() - started < 2


def test_thousands_of_names_that_are_there_twice_are_refused_at_once(tmp_path: Path) -> None:
    entry = json.dumps(A)
    names = [f'"{number}": {entry}' for number in range(50_000)]
    header = f"{{{', '.join([*names, names[-1]])}}}".encode()
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not JSON: '49999' occurs twice"):
        at(write(tmp_path, {"model.safetensors": handmade(header, b"1234")})).tensors()
    assert time.process_time() - started < 2


@given(st.binary(max_size=64), st.integers(0, 200), st.binary(max_size=4))
def test_damaged_bytes_give_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, position: int, patch: bytes
) -> None:
    whole = pack({"a": f32(1, 2), "b": f32(3)})
    folder = tmp_path_factory.mktemp("m")
    for content in (junk, whole[:position] + patch + whole[position + len(patch) :]):
        try:
            tensors = at(write(folder, {"model.safetensors": content})).tensors()
        except CheckpointError:
            continue
        assert sum(tensors.raw(name).nbytes for name in tensors) <= len(content)


def test_shards_are_one_model(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    files = {one: pack({"a": f32(1)}), two: pack({"b": f32(2), "spare": f32(3)})}
    write(tmp_path, {**files, "model.safetensors.index.json": index(a=one, b=two)})
    tensors = at(tmp_path).tensors()
    assert {name: float(tensors.f32(name)[0]) for name in tensors} == {"a": 1.0, "b": 2.0}
    (tmp_path / two).write_bytes(files[two][:-1])
    with pytest.raises(CheckpointError, match=f"{two} is truncated"):
        at(tmp_path).tensors()


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "x.safetensors", "b": "z.safetensors"}, r"names z\.safetensors, which is missing"),
        ({"a": "x.safetensors", "c": "y.safetensors"}, r"says that c is in y\.safetensors, which does not have it"),
        ({"a": "x.safetensors", "b": "y.safetensors", "twice": "y.safetensors"}, "twice is in 2 shards"),
        ({"a": "model-1.bin"}, r"names model-1\.bin, which is not a \.safetensors file of weights"),
        ({"a": 1}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_with_wrong_entries_is_refused(tmp_path: Path, weight_map: object, said: str) -> None:
    files = {
        "x.safetensors": pack({"a": f32(1), "twice": f32(1)}),
        "y.safetensors": pack({"b": f32(2), "twice": f32(1)}),
    }
    write(tmp_path, {**files, "model.safetensors.index.json": {"weight_map": weight_map}})
    with pytest.raises(CheckpointError, match=said):
        at(tmp_path).tensors()


def test_a_module_has_tensors_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, {**MODEL, "2_Dense/model.safetensors": pack({"linear.weight": f32(5)})})
    assert at(tmp_path).tensors("2_Dense").names() == ["linear.weight"]
    with pytest.raises(CheckpointError, match=r"3_Dense has no model\.safetensors"):
        at(tmp_path).tensors("3_Dense")


def test_pickles_are_refused_with_a_way_to_convert_them(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": {}, "model.pt": b"pickle"})
    with pytest.raises(CheckpointError, match=r"but model\.pt\. BEI reads no other formats.*safe_serialization"):
        resolve(str(tmp_path)).tensors()


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n"
    with pytest.raises(CheckpointError, match="git lfs pull"):
        at(write(tmp_path, {"model.safetensors": pointer})).tensors()
