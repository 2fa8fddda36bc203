"""Leases: other processes see them, and no process gets one while an entry is removed."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from bei_core.storage import locks
from bei_core.storage.locks import LeaseFile


def test_no_process_gets_a_lease_on_an_entry_without_leases_while_it_is_removed(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "leases" / "a", local=True)
    with file.exclusive() as granted:
        assert granted
        handle = os.open(file.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(handle)


def test_on_a_network_volume_no_file_is_created_that_would_look_like_use(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "a", local=False)
    with file.exclusive() as granted:
        assert granted
    assert not file.path.exists()


def test_an_entry_is_free_if_no_lease_file_can_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:  # noqa: ANN401
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr("os.open", refuse)
    file = LeaseFile(tmp_path / "a", local=True)
    with file.exclusive() as granted:
        assert granted
    with pytest.raises(PermissionError):
        file.acquire(tmp_path)


@pytest.mark.parametrize("local", [True, False])
def test_asking_leaves_no_trace(tmp_path: Path, local: bool) -> None:
    file = LeaseFile(tmp_path / "a", local)
    assert not file.is_leased()
    assert not file.path.exists()
    lease = file.acquire(tmp_path)
    assert file.is_leased()
    lease.release()
    os.utime(file.path, (1e9, 1e9))
    assert not file.is_leased()
    assert file.path.stat().st_mtime == 1e9


def test_on_a_network_volume_a_lease_that_others_could_not_see_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.utime", refuse)
    with pytest.raises(PermissionError):
        LeaseFile(tmp_path / "a", local=False).acquire(tmp_path)


def test_a_lock_that_is_refused_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    closed: list[int] = []
    real_open, real_close = locks.open_file, os.close

    def opening(path: Path) -> int:
        opened.append(real_open(path))
        return opened[-1]

    def closing(handle: int) -> None:
        closed.append(handle)
        real_close(handle)

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "open_file", opening)
    monkeypatch.setattr("os.close", closing)
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="No locks"):
        LeaseFile(tmp_path / "a", local=True).acquire(tmp_path)
    assert opened
    assert opened == closed
