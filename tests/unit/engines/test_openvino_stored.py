"""Weights that an engine folder keeps in the dtype of the checkpoint."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import openvino
import pytest
from openvino import Model, Node, Type
from openvino import opset15 as op

from bei_core.checkpoint import Checkpoint
from bei_core.engines.openvino import memory_map, ops, stored
from bei_core.engines.openvino.stored import StoredTensor, drop_mapped_pages, keep_weights_narrow, stored_tensor
from tests.golden.weights import BYTES, encode, safetensors

Array = npt.NDArray[Any]

ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


def checkpoint_of(folder: Path, dtype: str, **values: Array) -> Checkpoint:
    content = {name: (dtype, value.shape, encode(value, dtype)) for name, value in values.items()}
    (folder / "model.safetensors").write_bytes(safetensors(content))
    return Checkpoint(folder, "here", "1")


def run(output: Node, given: Node, values: Array, path: Path) -> Array:
    """The outputs of the graph after it was saved and loaded."""
    openvino.save_model(Model([op.result(output)], [given], "m"), path, compress_to_fp16=False)
    graph = openvino.Core().read_model(path)
    keep_weights_narrow(graph, "f32")
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([values])[0])


@pytest.mark.parametrize("kind", [Type.bf16, Type.f16])
def test_every_value_of_16_bits_is_looked_up_exactly(kind: Type, tmp_path: Path) -> None:
    table = StoredTensor(ALL_BITS.reshape(-1, 2), kind)
    ids = op.parameter([-1, -1], Type.i32)
    asked = np.arange(len(table), dtype=np.int32).reshape(128, -1)
    found = run(table.lookup(ids), ids, asked, tmp_path / "m.xml")
    expected = np.asarray(table).reshape(-1)
    is_normal = ~(np.abs(expected) < np.finfo(np.float32).tiny)  # OpenVINO takes denormal numbers for zero
    np.testing.assert_array_equal(found.reshape(-1)[is_normal].view(np.uint32), expected[is_normal].view(np.uint32))
    assert (tmp_path / "m.bin").stat().st_size < ALL_BITS.nbytes + (1 << 18) + 200  # the table, and all values once


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("widened", [True, False])
def test_a_linear_layer_is_stored_in_the_bits_of_the_checkpoint(
    dtype: str, widened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_MAX_WIDENED_BYTES", 1 << 20 if widened else 0)
    rng = np.random.default_rng(1)
    checkpoint = checkpoint_of(tmp_path, dtype, w=rng.standard_normal((96, 64)).astype(np.float32))
    weight = cast("Array", stored_tensor(checkpoint.tensors(), "w"))
    x = op.parameter([-1, 64], Type.f32)
    given = rng.standard_normal((5, 64)).astype(np.float32)
    found = run(ops.linear(x, weight, None), x, given, tmp_path / "m.xml")
    np.testing.assert_allclose(found, given @ checkpoint.tensors().f32("w").T, atol=1e-5)
    assert (tmp_path / "m.bin").stat().st_size == 96 * 64 * BYTES[dtype]


def test_numpy_computes_with_the_values_in_f32(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    tensors = checkpoint_of(tmp_path, "BF16", w=values).tensors()
    tensor, exact = stored_tensor(tensors, "w"), tensors.f32("w")
    assert isinstance(tensor, StoredTensor)
    assert (tensor.shape, tensor.ndim, len(tensor)) == ((6, 4), 2, 6)
    for found, expected in (
        (tensor + np.float32(1), exact + 1),
        (tensor[5] - tensor[2], exact[5] - exact[2]),
        (tensor[1:3].reshape(4, 2), exact[1:3].reshape(4, 2)),
        (tensor.T, exact.T),
        (np.concatenate([tensor, tensor]), np.concatenate([exact, exact])),
    ):
        np.testing.assert_array_equal(np.asarray(found), expected)
        assert np.asarray(found).dtype == np.float32


def address_of(node: Node) -> int:
    """Where the bits of a weight are in memory."""
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return int(node.data.ctypes.data)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_linear_layer_is_not_copied(dtype: str, tmp_path: Path) -> None:
    tensors = checkpoint_of(tmp_path, dtype, w=np.ones((96, 64), np.float32)).tensors()
    weight, mapped = cast("Array", stored_tensor(tensors, "w")), tensors.raw("w")
    assert address_of(ops.constant(weight)) == mapped.ctypes.data
    assert address_of(ops.constant(weight[32:64])) == mapped[32:64].ctypes.data  # a part of a fused layer


@pytest.mark.parametrize(("dtype", "num_rows"), [("BF16", 1 << 14), ("F16", 1 << 14), ("F32", 1 << 14), ("F32", 4)])
def test_a_table_is_not_copied(dtype: str, num_rows: int, tmp_path: Path) -> None:
    tensors = checkpoint_of(tmp_path, dtype, w=np.ones((num_rows, 4), np.float32)).tensors()
    ids = op.parameter([-1, -1], Type.i32)
    rows = ops.embedding(cast("Array", stored_tensor(tensors, "w")), ids)
    nodes = Model([op.result(rows)], [ids], "m").get_ops()
    constants = {address_of(node) for node in nodes if node.get_type_name() == "Constant"}
    assert tensors.raw("w").ctypes.data in constants


def test_a_weight_that_is_not_in_a_mapped_file_is_copied() -> None:
    """Nothing else would keep its memory as long as the graph."""
    values = np.ones((96, 64), np.float32)
    for given in (values, values[32:64], values.view(np.uint32).view(np.float32)):
        assert address_of(StoredTensor(given, Type.f32).constant()) != given.ctypes.data


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        pytest.param("model.bin", "model.bin", id="file"),
        pytest.param("model.safetensors", "", id="folder"),
        pytest.param("0_Transformer/pytorch_model.bin", "", id="folder-of-the-first-module"),
        pytest.param("caf\udce9/line\nbreak.safetensors", "", id="not-utf-8"),
    ],
)
def test_the_pages_of_mapped_weights_are_dropped_and_read_again(name: str, dropped: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(range(256)) * 256)
    mapped = np.memmap(path, np.uint8, mode="r")
    before = int(mapped.sum())
    assert num_in_memory(mapped) == mapped.nbytes // mmap.PAGESIZE
    drop_mapped_pages(tmp_path / dropped)
    assert num_in_memory(mapped) == 0
    assert int(mapped.sum()) == before


def test_weights_of_a_repository_of_the_hub_are_dropped(tmp_path: Path) -> None:
    """Its files are links to a folder of contents."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(bytes(1 << 16))
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0a1b")
    mapped = np.memmap(tmp_path / "snapshot" / "model.safetensors", np.uint8, mode="r")
    assert mapped.sum() == 0
    drop_mapped_pages(tmp_path / "snapshot")
    assert num_in_memory(mapped) == 0


def num_in_memory(mapped: npt.NDArray[np.uint8]) -> int:
    """How many pages of mapped memory this process has."""
    with Path("/proc/self/pagemap").open("rb") as entries:
        entries.seek(mapped.ctypes.data // mmap.PAGESIZE * 8)
        return int((np.frombuffer(entries.read(mapped.nbytes // mmap.PAGESIZE * 8), np.uint64) >> 63).sum())


def test_nothing_is_dropped_on_a_system_that_does_not_list_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_map, "_MAPS", tmp_path / "none")
    drop_mapped_pages(tmp_path)
