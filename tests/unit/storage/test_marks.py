"""Marks: who has a folder is known to others, and nobody comes to have one while it is removed."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from bei_core.storage import marks
from bei_core.storage.marks import Mark


def test_nobody_comes_to_have_a_folder_that_had_no_mark_yet(tmp_path: Path) -> None:
    mark = Mark(tmp_path / "marks" / "a", local=True)
    with mark.alone() as alone:
        assert alone
        handle = os.open(mark.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(handle)


def test_on_a_network_volume_no_mark_is_made_that_would_look_like_use(tmp_path: Path) -> None:
    mark = Mark(tmp_path / "a", local=False)
    with mark.alone() as alone:
        assert alone
    assert not mark.path.exists()


def test_a_folder_is_free_where_no_mark_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:  # noqa: ANN401
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr("os.open", refuse)
    mark = Mark(tmp_path / "a", local=True)
    with mark.alone() as alone:
        assert alone
    with pytest.raises(PermissionError):
        mark.hold(tmp_path)


@pytest.mark.parametrize("local", [True, False])
def test_asking_leaves_no_trace(tmp_path: Path, local: bool) -> None:
    mark = Mark(tmp_path / "a", local)
    assert not mark.is_used()
    assert not mark.path.exists()
    held = mark.hold(tmp_path)
    assert mark.is_used()
    held.release()
    os.utime(mark.path, (1e9, 1e9))
    assert not mark.is_used()
    assert mark.path.stat().st_mtime == 1e9


def test_on_a_network_volume_a_mark_that_may_not_be_touched_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.utime", refuse)
    with pytest.raises(PermissionError):
        Mark(tmp_path / "a", local=False).hold(tmp_path)


def test_a_lock_that_is_refused_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    closed: list[int] = []
    real_open, real_close = marks.open_file, os.close

    def opening(path: Path) -> int:
        opened.append(real_open(path))
        return opened[-1]

    def closing(handle: int) -> None:
        closed.append(handle)
        real_close(handle)

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(marks, "open_file", opening)
    monkeypatch.setattr("os.close", closing)
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="No locks"):
        Mark(tmp_path / "a", local=True).hold(tmp_path)
    assert opened
    assert opened == closed
