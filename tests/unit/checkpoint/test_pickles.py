"""Files of torch.save are read without torch, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint, Tensors
from bei_core.checkpoint.folder import is_small
from bei_core.checkpoint.pickles import pickled_entries
from bei_core.errors import CheckpointError
from tests.golden.bge_m3 import COLBERT, SPARSE
from tests.golden.weights import encode
from tests.torch_file import REAL, Storage, View, contiguous, saved, transposed

VALUES = np.arange(6, dtype=np.float16)
FALSE = b"\x89"  # requires_grad
ORDERED_DICT = b"ccollections\nOrderedDict\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return group(*map(number, values))


def storage(*, kind: str = "HalfStorage", key: str = "0", count: int = 6) -> bytes:
    return group(text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (3, 1), *, offset: int = 0, data: bytes = storage()
) -> bytes:
    arguments = group(data, number(offset), numbers(*shape), numbers(*strides), FALSE, ORDERED_DICT + b")R")
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def tensors(value: bytes, name: bytes = text("weight")) -> bytes:
    """The pickle of {"weight": value}."""
    return b"\x80\x02}(" + name + value + b"u."


def save(path: Path, content: bytes, members: dict[str, bytes] | None = None, how: int = zipfile.ZIP_STORED) -> Path:
    """A file as torch.save lays it out."""
    found = {"data.pkl": content, "byteorder": b"little", "data/0": VALUES.tobytes(), **(members or {})}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in found.items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    found = Tensors(pickled_entries(path), source=str(path))
    return {name: found.f32(name) for name in found}


def test_the_layers_that_torch_saved_are_read_with_their_dtype() -> None:
    folder = Checkpoint(SPARSE.parent, "bge-m3", "0")
    for name, rows in ((SPARSE.name, 1), (COLBERT.name, 32)):
        found = folder.pickled(name)
        assert {key: (found.dtype(key), found[key].shape) for key in found} == {
            "weight": ("F16", (rows, 32)),
            "bias": ("F16", (rows,)),
        }
        assert np.abs(found.f32("weight")).max() <= 32**-0.5  # torch.nn.Linear begins with at most that
        assert found.f32("weight").std() > 0.05
        assert is_small(name)


def test_a_part_of_a_storage_is_a_tensor(tmp_path: Path) -> None:
    assert read(save(tmp_path / "a.pt", tensors(tensor())))["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read(save(tmp_path / "b.pt", tensors(tensor((2,), (1,), offset=4))))["weight"].tolist() == [4, 5]
    assert read(save(tmp_path / "t.pt", tensors(tensor((3, 2), (1, 3)))))["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read(save(tmp_path / "c.pt", tensors(tensor((1, 1, 2), (7, 9, 1)))))["weight"].tolist() == [[[0, 1]]]
    assert read(save(tmp_path / "d.pt", tensors(tensor((), ()))))["weight"] == 0


def doubled(times: int) -> bytes:
    """A tuple of two tuples of two tuples…, of which only 2 * `times` objects exist; its text would fill any memory."""
    return b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(times))


REFUSED = {
    "a function": (tensors(b"cposix\nsystem\n" + group(text("true")) + b"R"), "names 'posix.system'"),
    "a class": (tensors(b"cbuiltins\neval\n" + group(text("1")) + b"R"), "names 'builtins.eval'"),
    "a function by its object": (tensors(b"(iposix\nsystem\n"), "the operation INST"),
    "a newer protocol": (pickle.dumps({"weight": 1}, protocol=4), "the operation FRAME"),
    "an instance": (tensors(ORDERED_DICT + b")\x81"), "the operation NEWOBJ"),
    "a call of a dict": (tensors(b"})R"), "calls what is not one of the two functions"),
    "a dict with arguments": (tensors(ORDERED_DICT + group(number(1)) + b"R"), "calls what is not one of"),
    "complex numbers": (tensors(tensor(data=storage(kind="ComplexFloatStorage"))), "names 'torch.ComplexFloatStorage'"),
    "a number": (tensors(number(1)), "'weight' is not a tensor"),
    "a list": (b"\x80\x02].", "the operation EMPTY_LIST"),
    "nothing": (b"\x80\x02N.", "not a dict of tensors"),
    "a name that is a number": (tensors(tensor(), number(1)), "a name of a tensor that is not a text"),
    "a parameter": (tensors(b"ctorch._utils\n_rebuild_parameter\n"), "names 'torch._utils._rebuild_parameter'"),
    "strides beyond the storage": (tensors(tensor((2, 3), (1, 3))), "'weight' has shape .2, 3., which its storage"),
    "one number many times": (
        tensors(tensor((1 << 40,), (0,))),
        "'weight' has shape .1099511627776,., which its storage",
    ),
    "a negative stride": (tensors(tensor((2, 3), (-3, 1))), "a size that is not a number from 0"),
    "fewer strides than sizes": (tensors(tensor((2, 3), (1,))), "its data.pkl is malformed"),
    "a storage whose name is not a text": (
        tensors(
            tensor(data=group(text("storage"), b"ctorch\nHalfStorage\n", doubled(40), text("cpu"), number(6)) + b"Q")
        ),
        "a storage whose name is not a text",
    ),
    "too large a tensor": (tensors(tensor((2, 4), (4, 1))), r"shape \(2, 4\), which its storage is too small for"),
    "too far a tensor": (tensors(tensor(offset=1)), "which its storage is too small for"),
    "a negative size": (tensors(tensor((-2, -3), (3, 1))), "a size that is not a number from 0"),
    "a negative offset": (tensors(tensor(offset=-1)), "a size that is not a number from 0"),
    "no storage": (tensors(tensor(data=b"N")), "a tensor without a storage"),
    "too many dimensions": (tensors(tensor((1,) * 33, (1,) * 33)), "33 dimensions"),
    "a size beyond numpy's": (tensors(tensor((0, 1 << 63), (1, 1))), "has a shape of more than"),
    "too large a storage": (tensors(tensor(data=storage(count=1 << 40))), "fewer than the 2199023255552 bytes"),
    "no such storage": (tensors(tensor(data=storage(key="1"))), "no member data/1"),
    "a storage elsewhere": (tensors(tensor(data=storage(key="../data.pkl"))), "no member data/../data.pkl"),
    "an empty pickle": (b"", "its data.pkl is malformed"),
    "a cut pickle": (tensors(tensor())[:-9], "its data.pkl is malformed"),
    "an unknown operation": (b"\xff", "its data.pkl is malformed"),
    "an empty stack": (b"\x80\x02R.", "its data.pkl is malformed"),
    "a memo without its value": (b"\x80\x02h\x07.", "its data.pkl is malformed"),
    "a large pickle": (b"\x80\x02" + b"N" * (1 << 20) + b".", "at most 1048576 are read"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_in_one_line_with_its_name(content: bytes, reason: str, tmp_path: Path) -> None:
    path = save(tmp_path / "sparse_linear.pt", content)
    with pytest.raises(CheckpointError, match=reason) as refused:
        read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    content = pickle.dumps({"weight": Payload(tmp_path / "made")}, protocol=2)
    with pytest.raises(CheckpointError, match=r"names '(posix|nt)\.mkdir'"):
        read(save(tmp_path / "a.pt", content))
    assert not (tmp_path / "made").exists()
    pickle.loads(content)  # what it would have done
    assert (tmp_path / "made").exists()


def test_a_place_in_the_memo_allocates_nothing(tmp_path: Path) -> None:
    content = tensors(tensor()).replace(b"u.", b"ur\xff\xff\xff\xff.")
    assert list(read(save(tmp_path / "a.pt", content))) == ["weight"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no zip archive"),
        (  # what torch before 1.6 begins with
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
            r"format of before torch 1\.6, a bare pickle; convert the model once.*safe_serialization=True",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3516\n", "run git lfs pull"),
        (SPARSE.read_bytes()[:-40], "no zip archive"),
    ],
)
def test_what_is_no_archive_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read(tmp_path / "a.pt")


def test_the_list_of_members_is_limited_before_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", tensors(tensor()), {f"{n:0200}": b"" for n in range(5000)})
    with pytest.raises(CheckpointError, match=r"its list of members has \d+ bytes; at most 1048576 are read"):
        read(path)


def test_every_tensor_of_a_file_by_torch_has_its_values() -> None:
    found = Tensors(pickled_entries(REAL), source="it")
    assert {name: (found.dtype(name), found[name].shape) for name in found} == {
        "embeddings.position_ids": ("I64", (1, 5)),
        "embeddings.weight": ("F32", (4, 3)),
        "decoder.weight": ("F32", (4, 3)),
        "dense.weight": ("F32", (2, 3)),
        "part.weight": ("BF16", (2, 3)),
        "part.bias": ("BF16", (10,)),
        "permuted": ("F16", (4, 2, 3)),
        "scale": ("F32", ()),
    }
    assert all(found[name].flags.c_contiguous for name in found)
    assert found["embeddings.position_ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert found.f32("embeddings.weight").tolist() == np.arange(12).reshape(4, 3).tolist()
    assert np.shares_memory(found["decoder.weight"], found["embeddings.weight"])
    assert found.f32("dense.weight").tolist() == [[0, 2, 4], [1, 3, 5]]
    assert found.f32("part.weight").tolist() == [[4, 5, 6], [7, 8, 9]]
    assert found.f32("part.bias").tolist() == [*range(10, 20)]
    assert found.f32("permuted").tolist() == np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1).tolist()
    assert found.f32("scale") == 7


def test_the_files_of_these_tests_are_those_of_torch(tmp_path: Path) -> None:
    table, part = (
        contiguous("F32", (4, 3), encode(np.arange(12), "F32")),
        Storage("BF16", encode(np.arange(20), "BF16")),
    )
    tensors = {
        "embeddings.position_ids": contiguous("I64", (1, 5), encode(np.arange(5), "I64")),
        "embeddings.weight": table,
        "decoder.weight": table,
        "dense.weight": transposed("F32", (2, 3), encode(np.arange(6).reshape(3, 2).T.ravel(), "F32")),
        "part.weight": View(part, 4, (2, 3), (3, 1)),
        "part.bias": View(part, 10, (10,), (1,)),
        "permuted": View(Storage("F16", encode(np.arange(24), "F16")), 0, (4, 2, 3), (1, 12, 4)),
        "scale": contiguous("F32", (), encode(np.array(7), "F32")),
    }
    (tmp_path / "a.bin").write_bytes(saved(tensors, root=REAL.stem))
    with zipfile.ZipFile(REAL) as theirs, zipfile.ZipFile(tmp_path / "a.bin") as ours:
        own = {f"{REAL.stem}/{name}" for name in (".format_version", ".storage_alignment", ".data/serialization_id")}
        assert {*theirs.namelist()} - own == {*ours.namelist()}  # torch before 2.1 writes none of the three
        for name in ours.namelist():
            assert ours.read(name) == theirs.read(name), name
    for path in (REAL, tmp_path / "a.bin"):
        assert pickled_entries(path)["scale"].start % 64 == 0


def test_members_have_to_be_there_as_they_are(tmp_path: Path) -> None:
    good = tensors(tensor())
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        read(save(tmp_path / "a.pt", good, how=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="not little-endian"):
        read(save(tmp_path / "b.pt", good, {"byteorder": b"big"}))
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("c/version", "3")
    with pytest.raises(CheckpointError, match=re.escape("no member data.pkl")):
        read(tmp_path / "c.pt")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("path", [SPARSE, COLBERT, REAL], ids=lambda path: path.name)
def test_a_damaged_file_gives_tensors_or_one_error(path: Path, tmp_path: Path) -> None:
    chance, whole, damaged = random.Random(7), path.read_bytes(), tmp_path / "damaged.pt"
    messages = list[str]()
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        damaged.write_bytes(content[: chance.choice((len(content), len(content), chance.randrange(len(content))))])
        try:
            read(damaged)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 60
    assert not any("\n" in message for message in messages)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # by pickletools, of a text that it then refuses
def test_a_damaged_pickle_gives_tensors_or_one_error(tmp_path: Path) -> None:
    chance, whole = random.Random(9), tensors(tensor())
    messages = list[str]()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 2, 4))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            read(save(tmp_path / "a.pt", bytes(content)))
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 250
    assert not any("\n" in message for message in messages)
