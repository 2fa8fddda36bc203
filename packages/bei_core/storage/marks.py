"""Who uses a folder of the cache, so that nobody removes it meanwhile.

A mark is a file that every user of a folder holds: locked (shared) on a disk of one machine, touched once an hour on a
network volume, where locks cannot be relied on.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# How users of a folder on a network volume show that they are there, and after how long without it they are not.
_HEARTBEAT_S = 3600.0
_ABSENT_S = 24 * 3600.0

# File systems of one machine. What is not known counts as a network volume: there the worst is a build too many.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "apfs", "bcachefs"})


class Held:
    """A folder that cannot be removed until `release`."""

    def __init__(self, folder: Path, handle: int, mark: Path, *, beat: bool) -> None:
        self.folder = folder
        self._handle = handle
        self._gone = threading.Event()
        if beat:
            threading.Thread(target=self._beat, args=(mark,), name="bei-store-heartbeat", daemon=True).start()

    def release(self) -> None:
        """Lets the folder go; calling again does nothing."""
        if not self._gone.is_set():
            self._gone.set()
            os.close(self._handle)

    def _beat(self, mark: Path) -> None:
        while not self._gone.wait(_HEARTBEAT_S):
            with suppress(OSError):
                os.utime(mark)


@dataclass(frozen=True, slots=True)
class Mark:
    """The file by which users of a folder are known."""

    path: Path
    local: bool  # whether locks hold there

    def hold(self, folder: Path) -> Held:
        """The folder, there or not, safe from removal. Raises OSError where nobody would know that it is used."""
        handle = open_file(self.path)
        try:
            self._sign(handle)
        except BaseException:
            os.close(handle)
            raise
        return Held(folder, handle, self.path, beat=not self.local)

    def _sign(self, handle: int) -> None:
        if not self.local:
            os.utime(self.path)
            return
        fcntl.flock(handle, fcntl.LOCK_SH)
        with suppress(OSError):  # another user's mark may not be touched, and the lock is enough
            os.utime(self.path)

    def is_used(self) -> bool:
        """Whether somebody has the folder now. Asking leaves no trace."""
        with self._asked() as alone:
            return not alone

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody has the folder; on a disk, nobody can come to have it while the block runs.

        That takes a mark, which is made where there is none and one can be.
        """
        if self.local:
            with suppress(OSError):
                os.close(open_file(self.path))
        with self._asked() as alone:
            yield alone

    @contextmanager
    def _asked(self) -> Iterator[bool]:
        """Whether nobody has the folder, by the mark that is there; its lock is held while the block runs."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        except PermissionError:  # another user's, who cannot be asked
            yield False
            return
        try:
            yield took(handle) if self.local else time.time() - os.fstat(handle).st_mtime > _ABSENT_S
        finally:
            os.close(handle)


def open_file(path: Path) -> int:
    """A handle to lock a file by, which need not be there yet, nor its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as fault:
        try:  # another user's: what may only be read can be locked too
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise fault from None


def took(handle: int) -> bool:
    """Whether nobody else has the lock of a file: then it is taken."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_local(path: Path) -> bool:
    """Whether the file system that `path` is or would be on belongs to this machine alone, by /proc/mounts."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()).resolve()
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True
    over = [(len(mount[1]), mount[2]) for mount in mounts if there.is_relative_to(mount[1])]
    return not over or max(over)[1] in _LOCAL
