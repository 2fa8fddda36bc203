"""A content-addressed cache in a folder: entries are published whole, leased by readers, and evicted by last use.

    <root>/<name>/           an entry; it does not change
    <root>/.tmp-*            a leftover, or an entry that is being written or removed; never read
    <root>/.bad-*            a damaged entry in quarantine; never read

A `RecordType` says what the entries are, and where leases, locks and refs are. Publishing is a rename within one file
system, so a reader sees a whole entry or none. Locks only save work: if two processes create the same entry (network
volumes have no reliable locks), the second one uses the entry of the first one.
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

TMP, BAD = ".tmp-", ".bad-"
TEMP_SUFFIX = ".tmp"  # of the name of a file that is being written


class Rank(IntEnum):
    """The order of eviction."""

    UNWANTED = 0  # leftovers and damaged entries: evicted even if the cache is small
    INPUT = 1  # needed only until an artifact is built from it
    ARTIFACT = 2  # built


class Record(NamedTuple):
    """The description of a folder of the cache."""

    rank: Rank
    kind: str  # one word, for logs: engine, checkpoint, leftover…
    label: str  # for people, such as "openvino f32"
    source: str = ""  # for people, such as "owner/name@0123456789ab"


class RecordType(ABC):
    """A type of entries: how to recognise and check one, and where its leases, locks and refs are."""

    # Paths below the root; {} stands for the entry's name or the ref's key. Without {}, all entries share one file.
    lease: ClassVar[str]
    lock: ClassVar[str]
    ref: ClassVar[str]
    lock_timeout_s: ClassVar[float]  # after this time the process that has the lock is assumed to hang
    locks_network_volumes: ClassVar[bool]  # whether to try to lock on a network volume

    @abstractmethod
    def name_of(self, folder: str) -> str | None:
        """The entry's name, from the name of its folder or of a leftover of it; None for any other folder."""

    @abstractmethod
    def describe(self, folder: Path) -> Record:
        """The description of a folder that `name_of` knows. Raises FileNotFoundError if it was removed meanwhile."""

    @abstractmethod
    def fault(self, folder: Path) -> str | None:
        """What is wrong with an entry, by a quick check; None if it is whole."""

    def expires_by_age(self, folder: str, *, local: bool) -> bool:
        """Whether a folder is evicted when it is a day old, because no lease shows whether it is in use."""
        return False


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the cache, or a leftover of an entry."""

    folder: Path
    record: Record
    num_bytes: int
    used_at: float  # seconds since the epoch
    in_use: bool
    lease_file: LeaseFile


class Cache:
    """The entries of one type in one folder. Many processes may share it; on a network volume, many machines too."""

    def __init__(self, root: Path, records: RecordType, *, local: bool | None = None) -> None:
        self.root = root
        self.records = records
        self.local = is_local(root) if local is None else local

    def folder(self, name: str) -> Path:
        """The folder of an entry, whether or not it exists."""
        return self.root / name

    def find(self, name: str) -> Path | None:
        """The folder of an entry if it exists and is whole, else None. Raises DiskError if it may not be read."""
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
        """A lease on an entry, which need not exist: no process evicts the entry until the lease is released.

        Raises DiskError if the entry does not exist and the folder cannot be written, so that it cannot be created.
        """
        folder, file = self.folder(name), self._lease_file(name)
        try:
            return file.acquire(folder)
        except OSError as error:
            if not folder.is_dir():
                raise disk_error(error, self.root) from error
            log.info(
                "%s cannot be leased (%s): another process may evict it while it is served",
                *(folder, error.strerror),
            )
            return Lease(folder, os.open(os.devnull, os.O_RDONLY))

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Take the lock of a name; yields whether it was taken. The block runs in either case."""
        if not self.local and not self.records.locks_network_volumes:
            yield False
            return
        with lock_file(self.root / self.records.lock.format(name), self.records.lock_timeout_s) as locked:
            yield locked

    def publish(self, name: str, staging: Path) -> Path:
        """Publish the folder `staging` as an entry; returns the entry's folder.

        A whole entry of that name is kept, a damaged one is quarantined. Raises DiskError.
        """
        target = self.folder(name)
        with translate_os_errors(self.root):
            if target.exists() and self.find(name) is None:
                self.quarantine(name)
            publish(staging, target, lambda folder: self.find(folder.name) is not None)
        return target

    def quarantine(self, name: str) -> None:
        """Rename a damaged entry, so that it can be created again. It is evicted a day later."""
        try:
            moved = self.folder(name).rename(self.root / f"{BAD}{name}-{uuid.uuid4().hex}")
            log.warning("%s is damaged; it is quarantined as %s", self.folder(name), moved.name)
            with suppress(OSError):
                os.utime(moved)  # its age counts from now
        except FileNotFoundError:
            log.info("another process has quarantined %s already", self.folder(name))
        except OSError as error:
            log.error("%s cannot be quarantined: %s", self.folder(name), error.strerror)

    def get_ref(self, key: str) -> bytes | None:
        """The value of a ref; None if it does not exist or cannot be read."""
        try:
            return (self.root / self.records.ref.format(key)).read_bytes()
        except OSError:
            return None

    def set_ref(self, key: str, value: bytes) -> None:
        """Write the value of a ref. If the cache cannot be written this is only logged: refs save work."""
        try:
            write_atomically(self.root / self.records.ref.format(key), value)
        except OSError as error:
            log.info("the ref %s cannot be written to %s: %s", key, self.root, error.strerror)

    def entries(self) -> list[Entry]:
        """All entries and leftovers; the least recently used is first. Raises DiskError."""
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
    """Remove leftovers, then entries by rank and last use until the rest fits into `max_bytes`; returns the removed.

    Without `max_bytes` only leftovers are removed. Entries in use stay. An input in use does not count, because it can
    be evicted soon and must not cause the eviction of an artifact. Raises DiskError, OSError.
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
    """A new folder beside `target`, to be published there. It is removed at the end of the block if it still exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{TMP}{target.name}-", dir=target.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, target: Path, is_whole: Callable[[Path], bool]) -> None:
    """Write a finished folder to the disk, then rename it to `target`. A whole folder that is there already is kept."""
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


def write_atomically(path: Path, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Write a file; a reader sees either the old content or all of the new one, with `durable` also after a power loss.

    While it is written, its name is `.NAME.tmp`; only a process that is killed leaves such a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=TEMP_SUFFIX, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # other users may share the cache
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if durable:
        _sync(path.parent)


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def remove(entry: Entry) -> bool:
    """Remove an entry; returns False if a process has leased it meanwhile, or if it cannot be removed."""
    with entry.lease_file.exclusive() as granted:
        if not granted:
            return False
        doomed = entry.folder
        if not doomed.name.startswith("."):  # renamed first, so that no process reads an entry that is half removed
            doomed = doomed.with_name(f"{TMP}{doomed.name}-{uuid.uuid4().hex}")
            try:
                entry.folder.rename(doomed)
            except OSError as error:  # another process has removed it, or it belongs to another user
                log.info("%s cannot be evicted: %s", entry.folder, error.strerror)
                return False
        shutil.rmtree(doomed, ignore_errors=True)
    if doomed.exists():
        log.warning("%s cannot be removed completely: some of its files belong to another user", doomed)
        return False
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
    log.info("evicted %s %s (%.1f MB, last used %s)", entry.record.kind, entry.folder, entry.num_bytes / 1e6, used)
    return True


def _size(folder: Path) -> int:
    """Size of a folder's files in bytes. Files that are removed meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
