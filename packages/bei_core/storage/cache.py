"""A content-addressed cache in a folder: entries published whole, leased by readers, evicted by last use.

    <root>/<name>/           an entry, immutable
    <root>/.tmp-*, .bad-*    being written or removed; quarantined because it was damaged. Never read

What entries are, and where leases, locks and refs are kept, is said by a `RecordType`. Publishing is a rename within
one file system, so a reader sees all of an entry or none of it. Locks save work and no more: if two processes create
the same entry (a network volume, where locks are not reliable), the later one adopts the entry of the earlier one.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import ClassVar, NamedTuple

from bei_core.storage.errors import disk_error, translate_os_errors
from bei_core.storage.locks import Lease, LeaseFile, is_local, lock_file

log = logging.getLogger(__name__)

_TMP, _BAD = ".tmp-", ".bad-"


class Rank(IntEnum):
    """The order of eviction."""

    UNWANTED = 0  # leftovers and damaged entries: evicted whatever the size of the cache is
    INPUT = 1  # needed only until something is built from it
    ARTIFACT = 2  # what was built


class Record(NamedTuple):
    """What a folder of the cache is."""

    rank: Rank
    kind: str  # one word, for logs: engine, checkpoint, leftover…
    label: str  # for people, such as "openvino f32"
    source: str = ""  # for people, such as "owner/name@0123456789ab"


class RecordType(ABC):
    """A kind of entries: how to recognise one, and where its leases, locks and refs are kept."""

    # Below the root, with the entry's name or the ref's key for {}. Without {}, all entries share one file.
    lease: ClassVar[str]
    lock: ClassVar[str]
    ref: ClassVar[str]
    lock_timeout_s: ClassVar[float]  # after this long the process that has the lock is assumed to hang
    locks_network_volumes: ClassVar[bool]  # whether to try to lock there

    @abstractmethod
    def name_of(self, folder: str) -> str | None:
        """The name of the entry that a folder of the root is, or is a leftover of; None if it is neither."""

    @abstractmethod
    def describe(self, folder: Path) -> Record:
        """What a folder is that `name_of` knows. Raises FileNotFoundError if it was removed meanwhile."""

    @abstractmethod
    def fault(self, folder: Path) -> str | None:
        """What is wrong with an entry, as far as a quick look can tell; None if it is whole."""

    def expires_by_age(self, folder: str, *, local: bool) -> bool:
        """Whether a leftover is evicted by its own age, because no lease tells whether it is in use."""
        return False


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the cache, or a leftover of one."""

    folder: Path
    record: Record
    num_bytes: int
    used_at: float  # seconds since the epoch
    in_use: bool
    lease_file: LeaseFile

    @property
    def kind(self) -> str:
        """The record's kind."""
        return self.record.kind


class Cache:
    """The entries of one type under one folder. It may have many users, on many machines if it is a network volume."""

    def __init__(self, root: Path, records: RecordType, *, local: bool | None = None) -> None:
        self.root = root
        self.records = records
        self.local = is_local(root) if local is None else local

    def folder(self, name: str) -> Path:
        """Where the entry of that name is or would be."""
        return self.root / name

    def find(self, name: str) -> Path | None:
        """The folder of an entry that is there and whole. Raises DiskError if it may not be read."""
        folder = self.folder(name)
        if not folder.is_dir():
            return None
        with translate_os_errors(self.root):
            fault = self.records.fault(folder)
        if fault is not None:
            log.warning("%s is damaged (%s) and is not used", folder, fault)
            return None
        with suppress(OSError):
            os.utime(folder)  # for eviction by last use
        return folder

    def lease(self, name: str) -> Lease:
        """A lease on an entry, whether or not it is there: nobody evicts it until the lease is released.

        Raises DiskError if the entry is not there and could not be created either.
        """
        folder, file = self.folder(name), self._lease_file(name)
        try:
            return file.acquire(folder)
        except OSError as error:
            if not folder.is_dir():
                raise disk_error(error, self.root) from error
            log.info(
                "%s cannot be marked as in use (%s): another process may evict it while it is served",
                *(folder, error.strerror),
            )
            return Lease(folder, os.open(os.devnull, os.O_RDONLY))

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Take the lock of a name; yields whether this process has it. It goes on without the lock if there is none."""
        if not self.local and not self.records.locks_network_volumes:
            yield False
            return
        with lock_file(self.root / self.records.lock.format(name), self.records.lock_timeout_s) as locked:
            yield locked

    def publish(self, name: str, staging: Path) -> Path:
        """The entry that `staging` becomes. A whole entry that is there already stays, a damaged one is quarantined.

        Raises DiskError.
        """
        target = self.folder(name)
        with translate_os_errors(self.root):
            if target.exists() and self.find(name) is None:
                self.quarantine(name)
            publish(staging, target, lambda folder: self.find(folder.name) is not None)
        return target

    def quarantine(self, name: str) -> None:
        """Move a damaged entry out of the way, so that it can be created again. It is evicted later."""
        try:
            moved = self.folder(name).rename(self.root / f"{_BAD}{name}-{uuid.uuid4().hex}")
            log.warning("%s is damaged; it is quarantined as %s", self.folder(name), moved.name)
            with suppress(OSError):
                os.utime(moved)  # its age counts from now
        except FileNotFoundError:
            log.info("another process has quarantined %s already", self.folder(name))
        except OSError as error:
            log.error("%s cannot be quarantined: %s", self.folder(name), error.strerror)

    def get_ref(self, key: str) -> bytes | None:
        """What a ref stands for; None if there is none or it cannot be read."""
        try:
            return (self.root / self.records.ref.format(key)).read_bytes()
        except OSError:
            return None

    def set_ref(self, key: str, value: bytes) -> None:
        """Remember what a ref stands for. A cache that cannot be written forgets it, which does no harm."""
        try:
            write_atomically(self.root / self.records.ref.format(key), value)
        except OSError as error:
            log.info("%s is not remembered in %s: %s", key, self.root, error.strerror)

    def entries(self) -> list[Entry]:
        """All entries and leftovers, the least recently used first. Raises DiskError."""
        with translate_os_errors(self.root):
            folders = [path for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []
            ours = [(path, name) for path in folders if (name := self.records.name_of(path.name)) is not None]
            found = [entry for path, name in ours if (entry := self._entry(path, name)) is not None]
        return sorted(found, key=lambda entry: entry.used_at)

    def _entry(self, folder: Path, name: str) -> Entry | None:
        """None if the folder was published or removed since the cache was listed."""
        by_age = self.records.expires_by_age(folder.name, local=self.local)
        lease_file = LeaseFile(folder, local=False) if by_age else self._lease_file(name)
        has_own_file = folder.name == name and "{}" in self.records.lease and lease_file.path.exists()
        try:
            record = self.records.describe(folder)
            used_at = (lease_file.path if has_own_file else folder).stat().st_mtime
        except FileNotFoundError:
            return None
        return Entry(folder, record, _size(folder), used_at, lease_file.is_leased(), lease_file)

    def _lease_file(self, name: str) -> LeaseFile:
        return LeaseFile(self.root / self.records.lease.format(name), self.local)


def evict(caches: Iterable[Cache], max_bytes: int | None) -> list[Entry]:
    """Remove leftovers, then entries by rank and last use until the rest fits; returns what was removed.

    Entries in use stay. Only artifacts count while they are in use: an input that is can soon be evicted itself, and
    should not drive an artifact out. `max_bytes` None: leftovers alone. Raises DiskError, OSError.
    """
    entries = [entry for cache in caches for entry in cache.entries()]
    total = sum(entry.num_bytes for entry in entries if entry.record.rank == Rank.ARTIFACT or not entry.in_use)
    removed = []
    for entry in sorted(entries, key=lambda entry: (entry.record.rank, entry.used_at)):
        too_large = max_bytes is not None and total > max_bytes
        if (entry.record.rank == Rank.UNWANTED or too_large) and not entry.in_use and remove(entry):
            removed.append(entry)
            total -= entry.num_bytes
    return removed


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be published there. What is left of it at the end of the block is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{_TMP}{target.name}-", dir=target.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, target: Path, is_whole: Callable[[Path], bool]) -> None:
    """Rename a finished folder to `target`, all of it on the disk before. A whole folder that is there stays."""
    staging.chmod(0o755)
    for path in (*files_of(staging), staging):
        _sync(path)
    try:
        staging.rename(target)
    except OSError:
        if not is_whole(target):
            raise
        log.info("%s was published by another process meanwhile", target)
        shutil.rmtree(staging, ignore_errors=True)
    _sync(target.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees all of it, or the file as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)  # other users may share the cache
    Path(file.name).replace(path)


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def remove(entry: Entry) -> bool:
    """Whether the entry was removed. It was not if a process has taken a lease meanwhile."""
    with entry.lease_file.exclusive() as granted:
        if not granted:
            return False
        doomed = entry.folder
        if not doomed.name.startswith("."):  # renamed first, so that nobody reads half of it
            doomed = doomed.with_name(f"{_TMP}{doomed.name}-{uuid.uuid4().hex}")
            try:
                entry.folder.rename(doomed)
            except OSError as error:  # removed by another process, or another user's
                log.info("%s is not evicted: %s", entry.folder, error.strerror)
                return False
        shutil.rmtree(doomed, ignore_errors=True)
    if doomed.exists():
        log.warning("%s cannot be removed completely: some of it is another user's", doomed)
        return False
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
    log.info("evicted %s %s (%.1f MB, last used %s)", entry.kind, entry.folder, entry.num_bytes / 1e6, used)
    return True


def _size(folder: Path) -> int:
    """Bytes of a folder's files. Files that are removed meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
