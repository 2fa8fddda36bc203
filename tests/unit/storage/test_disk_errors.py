"""Disks that are full, fail or refuse writes: the error says what to do, and nothing is left half-written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13

from bei_core.checkpoint import resolve
from bei_core.checkpoint.hub import fetch_repository
from bei_core.cli import main as cli
from bei_core.engines import manifest as manifest_module
from bei_core.engines.cache import EngineCache
from bei_core.engines.manifest import Manifest, seal
from bei_core.engines.openvino.stored import save
from bei_core.engines.remote import RemoteEngines
from bei_core.errors import CheckpointError, DiskError, EngineCorruptError
from bei_core.storage.errors import disk_error, translate_os_errors
from bei_core.storage.objects import open_store
from bei_core.storage.transfer import RemoteFile, fetch, in_blocks
from tests.disks import CAPACITY, FULL, full, small_disk
from tests.fakes import write_engine
from tests.hub import Hub
from tests.stores import MODEL
from tests.unit.checkpoint.test_urls import tar
from tests.unit.engines.test_cache import make
from tests.web import File as Page
from tests.web import Web

__all__ = ["full"]

A = "a" * 32
BIG = bytes(CAPACITY + 1)


def left(folder: Path) -> set[str]:
    """The names of the files in a folder, without locks, leases and refs."""
    return {path.name for path in folder.iterdir()} - {".used", ".locks", ".requests"}


def big(folder: Path) -> None:
    (folder / "model.bin").write_bytes(BIG)
    seal(folder, Manifest(engine="fake", precision="f32", source="s", revision="0", artifact=A))


def refuse(number: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(folder / "model.bin"))

    return fill


# --- The cache


def test_a_build_on_a_full_disk_leaves_nothing_and_says_how_to_free_space(full: Path) -> None:
    cache = EngineCache(full / "engines", local=True)
    with pytest.raises(DiskError, match=f"{cache.root}: {FULL}; .*bei engines prune --max-gb.*cache_dir"):
        cache.obtain(A, big)
    assert not left(cache.root)


def test_openvinos_own_writing_says_why_it_stopped(full: Path) -> None:
    weights = opset13.constant(np.ones(CAPACITY // 4 + 1, np.float32))
    given = opset13.parameter([1], np.float32)
    model = openvino.Model([opset13.result(opset13.add(given, weights))], [given], "m")
    cache = EngineCache(full / "engines", local=True)
    with pytest.raises(DiskError, match=f"{cache.root}: {FULL}"):
        cache.obtain(A, lambda folder: save(model, folder / "model.xml"))
    assert not left(cache.root)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EIO, "model.bin: Input/output error; check the disk or its volume, which fails"),
        (errno.EACCES, "model.bin: Permission denied; let this user read and write there"),
        (errno.EROFS, "model.bin: Read-only file system; let this user read and write there"),
        (errno.EDQUOT, "engines: Disk quota exceeded; free some space there"),
        (errno.EMFILE, "model.bin: Too many open files; check this path"),
    ],
)
def test_each_disk_error_has_its_own_text(tmp_path: Path, number: int, said: str) -> None:
    cache = EngineCache(tmp_path / "engines", local=True)
    with pytest.raises(DiskError) as raised:
        cache.obtain(A, refuse(number))
    assert said in str(raised.value)
    assert "cache_dir (BEI_CACHE_DIR)" in str(raised.value)
    assert not left(cache.root)


def test_a_disk_that_fails_when_the_engine_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", fail)
    cache = EngineCache(tmp_path / "engines", local=True)
    with pytest.raises(DiskError, match="Input/output error"):
        cache.obtain(A, make(A))
    assert not left(cache.root)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, EngineCorruptError), (errno.EACCES, DiskError)])
def test_an_engine_that_cannot_be_read_is_damaged_unless_it_is_another_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    write_engine(tmp_path)

    def fail(path: Path) -> object:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(manifest_module, "_entry", fail)
    with pytest.raises(kind, match=f"{tmp_path}/.* {os.strerror(number)}"):
        manifest_module.verify(tmp_path)


def test_a_copy_is_refused_where_it_goes_to(tmp_path: Path) -> None:
    source, target = str(tmp_path / "from"), str(tmp_path / "to")
    assert f"write {target}:" in str(disk_error(OSError(errno.EACCES, "no", source, None, target), tmp_path))
    assert f"write {tmp_path}:" in str(disk_error(OSError(errno.ENOSPC, "no", source, None, target), tmp_path))
    with pytest.raises(DiskError, match=f"write {tmp_path}: it has no number"), translate_os_errors(tmp_path):
        raise OSError("it has no number")


# --- The commands


@pytest.mark.parametrize("to", ["the store", "a folder"])
def test_a_pull_to_a_full_disk_is_one_line(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    url = f"memory://{tmp_path.name}-{full.parent.name}"
    files, path = open_store(f"{url}/{A}")
    made = Manifest(engine="fake", precision="f32", source="s", revision="0", artifact=A)
    files.pipe_file(f"{path}/model.bin", BIG)
    entry = manifest_module.FileEntry(len(BIG), "0" * 64)
    made = Manifest(**{name: getattr(made, name) for name in made.__struct_fields__} | {"files": {"model.bin": entry}})
    files.pipe_file(f"{path}/manifest.json", manifest_module._encode(made))
    where = ("--cache-dir", full) if to == "the store" else ("--output", full / "engines" / A)
    monkeypatch.setattr(sys, "argv", ["bei", "engines", "pull", f"{url}/{A}", *map(str, where)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot read or write {full}/engines: ")
    assert "free some space there" in line
    assert not left(full / "engines")


def test_a_push_to_a_full_disk_leaves_no_engine(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    big(tmp_path / "engine")
    with small_disk(tmp_path / "disk") as disk:
        remote = RemoteEngines(f"file://{disk}/remote")
        with pytest.raises(CheckpointError, match=FULL):
            remote.push(tmp_path / "engine")
        assert remote.engine(A).manifest() is None


# --- Checkpoints


def test_a_fetch_to_a_full_disk_resumes_when_there_is_free_space(full: Path, tmp_path: Path) -> None:
    data = os.urandom(2 * CAPACITY)
    label = "store/model.safetensors"
    blocks = in_blocks(lambda begin, end: data[begin:end], len(data), label)
    file = RemoteFile("model.safetensors", label, len(data), blocks)
    with (
        pytest.raises(DiskError, match=f"{full}: {FULL}; free some space there"),
        translate_os_errors(full),
    ):
        fetch([file], full)
    assert {path.name for path in full.iterdir()} == {"model.safetensors.part"}, "under no name that is ever read"


def test_an_archive_on_a_full_disk_leaves_no_checkpoint(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Web() as web:
        # Packed it fits, and unpacked it does not.
        web.files["/m.tar.gz"] = Page(tar({**MODEL, "model.safetensors": BIG}))
        with pytest.raises(DiskError, match=f"{full}/.*{FULL}"):
            resolve(web.url("/m.tar.gz"), root=full)
    assert not [path for path in full.rglob("*") if path.is_file() and path.name not in {".lock", ".used"}]


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_the_hubs_cache_on_a_full_disk_names_its_own_variable(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Hub() as hub:
        hub.add("owner/name", {**MODEL, "model.safetensors": BIG})
        with pytest.raises(DiskError, match=f"{full}/hub: {FULL}; .*hf cache.*HF_HUB_CACHE"):
            resolve("owner/name", endpoint=hub.endpoint, offline=False, cache_dir=full / "hub")


@pytest.fixture
def hub_that_fails(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What snapshot_download raises."""
    faults: list[Exception] = []

    def fail(*_: object, **__: object) -> None:
        raise faults[0]

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    return faults


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (RuntimeError("Data processing error: IO Error: No space left on device (os error 28)"), DiskError),
        (RuntimeError("cannot write: Permission denied (os error 13)"), DiskError),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/hub/lock"), DiskError),
        (PermissionError(errno.EPERM, "Operation not permitted"), CheckpointError),  # a socket's, which names no file
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), CheckpointError),
        (RuntimeError("tcp connect error: Connection refused (os error 111)"), CheckpointError),
    ],
)
def test_the_hubs_disk_errors_are_not_reported_as_network_errors(
    hub_that_fails: list[Exception], tmp_path: Path, fault: Exception, kind: type[Exception]
) -> None:
    hub_that_fails.append(fault)
    options = {"cache_dir": tmp_path, "endpoint": None, "token": None, "local_files_only": False}
    with pytest.raises(kind, match=r"(No space left on device; free|Permission denied; let|refused|not permitted$)"):
        fetch_repository("owner/name", None, options)
