"""Downloads of files, whatever source they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from bei_core.errors import CheckpointError
from bei_core.storage.errors import TransientError
from bei_core.storage.transfer import RemoteFile, fetch, in_blocks

DATA = bytes(range(100))


def remote(
    name: str, read: Callable[[int, int], bytes] = lambda begin, end: DATA[begin:end], md5: str = ""
) -> RemoteFile:
    return RemoteFile(name, f"store/{name}", len(DATA), in_blocks(read, len(DATA), f"store/{name}"), md5=md5 or None)


def test_pauses_grow_and_the_last_error_is_the_one_that_is_raised(tmp_path: Path) -> None:
    pauses: list[float] = []
    errors = iter(range(10))

    def fail(begin: int, end: int) -> bytes:
        raise TransientError(f"number {next(errors)}")

    with pytest.raises(TransientError, match="number 3"):
        fetch([remote("a", fail)], tmp_path, sleep=pauses.append)
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


def test_a_permanent_error_is_not_retried(tmp_path: Path) -> None:
    pauses: list[float] = []

    def deny(begin: int, end: int) -> bytes:
        raise PermissionError("denied")

    with pytest.raises(PermissionError, match="denied"):
        fetch([remote("a", deny)], tmp_path, sleep=pauses.append)
    assert pauses == []


def test_the_first_error_ends_all_downloads_and_partial_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bei_core.storage.transfer._BLOCK", 10)
    begun, stopped = Event(), Event()
    reads: list[int] = []

    class Stop(Event):
        def set(self) -> None:
            super().set()
            stopped.set()

    monkeypatch.setattr("bei_core.storage.transfer.Event", Stop)

    def slow(begin: int, end: int) -> bytes:
        reads.append(begin)
        begun.set()
        stopped.wait()
        return DATA[begin:end]

    def fail(begin: int, end: int) -> bytes:
        begun.wait()
        raise PermissionError("denied")

    with pytest.raises(PermissionError, match="denied"):
        fetch([remote("a", slow), remote("b", fail)], tmp_path)
    assert reads == [0]
    assert not (tmp_path / "a").exists()
    part = (tmp_path / "a.part").read_bytes()
    assert part == DATA[: len(part)]
    assert part

    fetch([remote("a"), remote("b", md5=hashlib.md5(DATA).hexdigest())], tmp_path)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == DATA
    assert not list(tmp_path.rglob("*.part"))


def test_a_partial_download_that_is_longer_than_the_file_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(DATA * 2)
    fetch([remote("a")], tmp_path)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_digest_that_differs_is_refused_and_nothing_kept(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="store/a is damaged or was tampered with: its MD5 is"):
        fetch([remote("a", md5="0" * 32)], tmp_path)
    assert list(tmp_path.iterdir()) == []
