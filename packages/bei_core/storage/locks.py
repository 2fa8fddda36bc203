"""Leases and locks on files: who reads an entry of the cache, so that nobody evicts it, and who builds it.

Both are `flock`s on a local disk: the system releases them when the process ends, however it ends. Locks are not
reliable on network volumes; there a lease is shown by touching its file once an hour.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# On network volumes: how often a lease is renewed, and after how long without renewal it has expired.
_RENEWAL_S = 3600.0
_EXPIRY_S = 24 * 3600.0

_POLL_S = 0.05

# File systems of one machine. Any other counts as a network volume: the worst that follows is one build too many.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "apfs", "bcachefs"})


class Lease:
    """A cache entry that nobody evicts until `release`."""

    def __init__(self, folder: Path, handle: int, renewed: Path | None = None) -> None:
        """`handle` is closed by `release`; `renewed` is touched once an hour until then."""
        self.folder = folder
        self._handle = handle
        self._released = threading.Event()
        if renewed is not None:
            threading.Thread(target=self._renew, args=(renewed,), name="bei-lease", daemon=True).start()

    def release(self) -> None:
        """Allow eviction. A second call does nothing."""
        if not self._released.is_set():
            self._released.set()
            os.close(self._handle)

    def _renew(self, path: Path) -> None:
        while not self._released.wait(_RENEWAL_S):
            with suppress(OSError):
                os.utime(path)


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """The file that shows who has a lease on an entry."""

    path: Path
    local: bool  # whether locks are reliable there

    def acquire(self, folder: Path) -> Lease:
        """A lease on the folder, whether or not it exists. Raises OSError if nobody could see the lease."""
        handle = open_file(self.path)
        try:
            self._sign(handle)
        except BaseException:
            os.close(handle)
            raise
        return Lease(folder, handle, None if self.local else self.path)

    def _sign(self, handle: int) -> None:
        if not self.local:
            os.utime(self.path)
            return
        fcntl.flock(handle, fcntl.LOCK_SH)
        with suppress(OSError):  # the file may be another user's; the lock is enough
            os.utime(self.path)

    def is_leased(self) -> bool:
        """Whether anybody has a lease now. The question leaves no trace."""
        with self._try() as granted:
            return not granted

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Try to take an exclusive lease; yields whether it was granted. Held until the block ends (local disks only).

        The file is created if it does not exist and can be created, so that nobody gets a lease meanwhile.
        """
        if self.local:
            with suppress(OSError):
                os.close(open_file(self.path))
        with self._try() as granted:
            yield granted

    @contextmanager
    def _try(self) -> Iterator[bool]:
        """Yields whether nobody has a lease by the file as it is, which is locked while the block runs."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        except PermissionError:  # another user's: whether it is leased cannot be seen
            yield False
            return
        try:
            yield _lock(handle) if self.local else time.time() - os.fstat(handle).st_mtime > _EXPIRY_S
        finally:
            os.close(handle)


@contextmanager
def lock_file(path: Path, timeout_s: float) -> Iterator[bool]:
    """Take the exclusive lock of a file; yields whether this process has it.

    Waits for another process that has it, at most `timeout_s`. Yields False after that, and if the file cannot be
    locked at all (a read-only disk, a volume without locks).
    """
    try:
        handle = open_file(path)
    except OSError as error:
        log.debug("no lock on %s: %s", path, error)
        yield False
        return
    try:
        yield _wait_for(handle, path, timeout_s)
    finally:
        os.close(handle)


def open_file(path: Path) -> int:
    """A handle of a file that is to be locked. The file and its folder are created if they do not exist."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        try:  # another user's file, or a read-only disk: a file that can only be read can be locked too
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise error from None


def is_local(path: Path) -> bool:
    """Whether `path` is or would be on a file system of this machine alone, as /proc/mounts says."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()).resolve()
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True
    found = [(len(mount[1]), mount[2]) for mount in mounts if existing.is_relative_to(mount[1])]
    return not found or max(found)[1] in _LOCAL


def _wait_for(handle: int, path: Path, timeout_s: float) -> bool:
    """Whether the lock was taken in time. A volume without locks counts as not in time."""
    try:
        if _lock(handle):
            return True
        log.info("another process has the lock %s; waiting for it", path)
        deadline = time.monotonic() + timeout_s
        while not _lock(handle):
            if time.monotonic() > deadline:
                log.warning("another process has had the lock %s for %.0f s; going on without it", path, timeout_s)
                return False
            time.sleep(_POLL_S)
    except OSError as error:
        log.debug("no lock on %s: %s", path, error)
        return False
    return True


def _lock(handle: int) -> bool:
    """Whether nobody else has the lock of a file; it is taken then."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
