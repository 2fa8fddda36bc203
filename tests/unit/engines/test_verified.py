"""An engine's files are checked again only if they may have changed since the last check."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bei_core.engines import manifest as manifests
from bei_core.engines.manifest import TUNED, FileEntry, Manifest, check_digests, check_once, read_manifest, seal
from bei_core.errors import EngineCorruptError

MADE = Manifest(engine="fake", precision="f32", source="owner/name", revision="0" * 40, artifact="a" * 32)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"blob" * 1000)
    seal(folder, MADE)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose digests were computed."""
    found: list[Path] = []

    def check(folder: Path, manifest: Manifest, real: Callable[..., None] = check_digests) -> None:
        found.append(folder)
        real(folder, manifest)

    monkeypatch.setattr(manifests, "check_digests", check)
    return found


def check(folder: Path) -> None:
    check_once(folder, read_manifest(folder))


def test_files_that_stay_as_they_are_are_read_once(engine: Path, reads: list[Path]) -> None:
    check(engine)
    check(engine)
    assert reads == [engine]


def test_a_damaged_file_is_found_although_it_was_right_before(engine: Path, reads: list[Path]) -> None:
    check(engine)
    before = (engine / "model.bin").stat()
    (engine / "model.bin").write_bytes(b"blub" * 1000)
    os.utime(engine / "model.bin", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for _ in range(2):  # a failed check leaves no record
        with pytest.raises(EngineCorruptError, match=r"model\.bin does not have the digest"):
            check(engine)


def test_a_copy_and_another_manifest_are_checked(engine: Path, reads: list[Path], tmp_path: Path) -> None:
    check(engine)
    copied = Path(shutil.copytree(engine, tmp_path / "copy"))
    check(copied)
    manifest = read_manifest(engine)
    other = msgspec.structs.replace(manifest, files={"model.bin": FileEntry(4000, "0" * 64)})
    with pytest.raises(EngineCorruptError):
        check_once(engine, other)
    assert reads == [engine, copied, engine]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"model.bin": 1}'])
def test_a_malformed_record_is_written_again(engine: Path, reads: list[Path], content: bytes) -> None:
    (engine / TUNED).mkdir()
    (engine / TUNED / "verified.json").write_bytes(content)
    check(engine)
    check(engine)
    assert reads == [engine]


def test_a_folder_that_cannot_be_written_is_checked_each_time(
    engine: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(manifests, "write_atomically", refuse)
    check(engine)
    check(engine)
    assert reads == [engine, engine]
