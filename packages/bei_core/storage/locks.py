"""Leases and locks on files. A lease keeps a cache entry from being evicted; a lock lets one process build it.

On a local disk both are `flock`s, which the system releases when the process ends for any reason. Locks are not
reliable on network volumes: there the process with a lease touches the lease's file once an hour.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# On network volumes: the time between two renewals of a lease, and the age at which it has expired.
_RENEWAL_S = 3600.0
_EXPIRY_S = 24 * 3600.0

_POLL_S = 0.05

# File systems of one machine. Any other counts as a network volume; if that is wrong, an engine may be built twice.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "apfs", "bcachefs"})


class Lease:
    """A claim on a cache entry: no process evicts the entry until `release`."""

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
    """The file by which other processes see that an entry is leased."""

    path: Path
    local: bool  # whether locks are reliable there

    def acquire(self, folder: Path) -> Lease:
        """A lease on the folder, which need not exist. Raises OSError if other processes could not see the lease."""
        handle = open_file(self.path)
        try:
            if self.local:
                fcntl.flock(handle, fcntl.LOCK_SH)
            # On a local disk the lock is enough: the file may belong to another user.
            with suppress(OSError) if self.local else nullcontext():
                os.utime(self.path)
        except BaseException:
            os.close(handle)
            raise
        return Lease(folder, handle, None if self.local else self.path)

    def is_leased(self) -> bool:
        """Whether any process has a lease now. Creates no file."""
        with self._try() as granted:
            return not granted

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Try to take an exclusive lease; yields whether it was granted. Held until the block ends (local disks only).

        The file is created if it does not exist and can be created: other processes wait for their lease meanwhile.
        """
        if self.local:
            with suppress(OSError):
                os.close(open_file(self.path))
        with self._try() as granted:
            yield granted

    @contextmanager
    def _try(self) -> Iterator[bool]:
        """Yields whether no process has a lease, as far as the file shows; locks the file until the block ends."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        except PermissionError:  # another user's file: assume that the entry is leased
            yield False
            return
        try:
            yield _lock(handle) if self.local else time.time() - os.fstat(handle).st_mtime > _EXPIRY_S
        finally:
            os.close(handle)


@contextmanager
def lock_file(path: Path, timeout_s: float) -> Iterator[bool]:
    """Take the exclusive lock of a file; yields whether it was taken. Waits up to `timeout_s` for another process.

    Yields False after that time, and if the file cannot be locked at all (a read-only disk, a volume without locks).
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


@contextmanager
def try_lock_file(path: Path) -> Iterator[bool]:
    """Take the exclusive lock of a file without waiting; yields False only if another process has it.

    On a volume without locks it yields True. Raises OSError if the file can be neither created nor read.
    """
    handle = open_file(path)
    try:
        try:
            granted = _lock(handle)
        except OSError as error:
            log.debug("no lock on %s: %s", path, error)
            granted = True
        yield granted
    finally:
        os.close(handle)


def open_file(path: Path) -> int:
    """An open file descriptor for locking. The file and its folder are created if they do not exist."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        try:  # another user's file, or a read-only disk: a file that can only be read can still be locked
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise error from None


def is_local(path: Path) -> bool:
    """Whether `path`, which need not exist, is on a file system of this machine alone, by /proc/mounts."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()).resolve()
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True
    found = [(len(mount[1]), mount[2]) for mount in mounts if existing.is_relative_to(mount[1])]
    return not found or max(found)[1] in _LOCAL


def _wait_for(handle: int, path: Path, timeout_s: float) -> bool:
    """Wait for a lock; returns whether it was taken before `timeout_s`. False on a volume without locks."""
    try:
        if _lock(handle):
            return True
        log.info("waiting for another process, which has the lock %s", path)
        deadline = time.monotonic() + timeout_s
        while not _lock(handle):
            if time.monotonic() > deadline:
                log.warning("another process has had the lock %s for %.0f s; continuing without it", path, timeout_s)
                return False
            time.sleep(_POLL_S)
    except OSError as error:
        log.debug("no lock on %s: %s", path, error)
        return False
    return True


def _lock(handle: int) -> bool:
    """Take the exclusive lock of a file unless another process has it; returns whether it was taken."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
