"""Built engines on a disk or a network volume: content-addressed, published whole, shared by processes.

    <root>/<artifact>/         an engine, immutable
    <root>/.requests/<key>     which engine a request for a model was answered with, so that no hub need be asked again
    <root>/.used/<artifact>    when it was last opened; locked, shared, by whoever has it open
    <root>/.locks/             held by whoever builds, so that of many processes one does
    <root>/.tmp-*, .bad-*      being built or taken away; was damaged. Never read

Publishing is a rename on one file system, so a reader sees all of an engine or none of it. On a network volume, where
locks cannot be relied on, several may build the same engine: the later adopt the earlier one's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bei_core.engines.manifest import Address, Manifest, is_engine, read_manifest, sync, verify
from bei_core.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

# After this long another's build is taken for stuck, and one is made beside it.
_LOCK_TIMEOUT_S = 1800.0
_POLL_S = 0.05

# How users of an engine on a network volume show that they are there, and after how long without it they are not.
_HEARTBEAT_S = 3600.0
_ABSENT_S = 24 * 3600.0

_ADDRESS = re.compile(r"[0-9a-f]{32}")

# File systems of one machine. What is not known counts as a network volume: there the worst is a build too many.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "apfs", "bcachefs"})


class Request(msgspec.Struct, frozen=True):
    """What a request for a model was answered with."""

    artifact: Address
    source: str
    revision: str  # the commit that a branch named then


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine of the store, or what is left of one."""

    folder: Path
    manifest: Manifest | None  # None: not of this version, damaged, or unfinished
    num_bytes: int
    used_at: float  # seconds since the epoch
    in_use: bool

    @property
    def is_leftover(self) -> bool:
        """Whether it is being built or taken away, or was set aside: no engine, whatever is in it."""
        return _is_leftover(self.folder)


class Held:
    """An engine that cannot be evicted until `release`."""

    def __init__(self, folder: Path, handle: int, mark: Path, *, beat: bool) -> None:
        self.folder = folder
        self._handle = handle
        self._gone = threading.Event()
        if beat:
            threading.Thread(target=self._beat, args=(mark,), name="bei-store-heartbeat", daemon=True).start()

    def release(self) -> None:
        """Lets the engine go; calling again does nothing."""
        if not self._gone.is_set():
            self._gone.set()
            os.close(self._handle)

    def _beat(self, mark: Path) -> None:
        while not self._gone.wait(_HEARTBEAT_S):
            with suppress(OSError):
                os.utime(mark)


class Store:
    """The engines under one folder, of which there may be many users, on many machines where it is a network volume."""

    def __init__(self, root: Path, *, max_bytes: int | None = None, local: bool | None = None) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self.local = is_local(root) if local is None else local

    def folder(self, artifact: str) -> Path:
        """Where the engine of that address is or would be."""
        return self.root / artifact

    def obtain(self, artifact: str, make: Callable[[Path], None]) -> Held:
        """The engine of that address, held; `make` fills a folder with it, manifest and all, where there is none.

        Of many processes that ask at once, one makes it and the others wait.
        """
        held = self.hold(artifact)
        try:
            if not is_engine(held.folder):
                with self.locked(artifact):
                    if not is_engine(held.folder):
                        self._clear(held.folder)
                        publish(held.folder, make)
                        self.trim()
        except BaseException:
            held.release()
            raise
        return held

    def hold(self, artifact: str) -> Held:
        """The place of an engine, whether or not it is there, safe from eviction.

        Raises ConfigError where it is not there and could not be put there.
        """
        mark = self._mark(artifact)
        try:
            handle = _open(mark)
            os.utime(mark)
        except OSError as fault:
            if not is_engine(self.folder(artifact)):
                raise ConfigError(
                    f"engines cannot be kept in {self.root} ({fault.strerror}); "
                    "set cache_dir (BEI_CACHE_DIR) to a folder that can be written"
                ) from fault
            log.info("%s cannot be written (%s); nothing there is ever removed, then", self.root, fault.strerror)
            return Held(self.folder(artifact), os.open(os.devnull, os.O_RDONLY), mark, beat=False)
        if self.local:
            fcntl.flock(handle, fcntl.LOCK_SH)
        return Held(self.folder(artifact), handle, mark, beat=not self.local)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Holds a lock that other processes wait for; after half an hour, and where `_lock` has none, no lock."""
        handle = self._lock(name)
        if handle is None:
            yield
            return
        try:
            _wait_for(handle, name)
            yield
        finally:
            os.close(handle)

    def _lock(self, name: str) -> int | None:
        """The file to lock; None on a network volume, and where nothing can be written: there nobody builds."""
        try:
            return _open(self.root / ".locks" / name) if self.local else None
        except OSError:
            return None

    def answered(self, key: str) -> Held | None:
        """The engine that a request was answered with, where it is still there."""
        try:
            answer = msgspec.json.decode((self.root / ".requests" / key).read_bytes(), type=Request)
        except (OSError, msgspec.DecodeError):
            return None
        held = self.hold(answer.artifact)
        if not is_engine(held.folder):
            held.release()
            return None
        log.info("%s at %s: its engine is %s", answer.source, answer.revision, held.folder)
        return held

    def remember(self, key: str, answer: Request) -> None:
        """Notes which engine a request was answered with, where that can be written."""
        path = self.root / ".requests" / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                file.write(msgspec.json.encode(answer))
            os.chmod(file.name, 0o644)  # other replicas may run as other users
            Path(file.name).replace(path)
        except OSError as fault:
            log.info("which engine %s has is not remembered: %s", answer.source, fault.strerror)

    def set_aside(self, folder: Path) -> None:
        """Moves a damaged engine out of the way, so that it is made again; what it was stays to be looked at.

        A whole one stays: another process has met the same damage, and made it again.
        """
        with self.locked(folder.name):
            try:
                verify(folder)
            except (CheckpointError, OSError):
                self._move_aside(folder)
            else:
                log.info("another process has made %s again already", folder)

    def entries(self) -> list[Entry]:
        """What is in the store, the least recently used first."""
        folders = [path for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []
        ours = [path for path in folders if _ADDRESS.fullmatch(path.name) or _is_leftover(path)]
        there = [entry for path in ours if (entry := self._entry(path)) is not None]
        return sorted(there, key=lambda entry: entry.used_at)

    def trim(self, max_bytes: int | None = None) -> list[Entry]:
        """What was removed: leftovers, then the least recently used until the rest fits; none that is in use."""
        limit = self._max_bytes if max_bytes is None else max_bytes
        removed, entries = [], self.entries()
        total = sum(entry.num_bytes for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry.manifest is not None):
            unwanted = entry.manifest is None or (limit is not None and total > limit)
            if unwanted and not entry.in_use and self._remove(entry):
                removed.append(entry)
                total -= entry.num_bytes
        return removed

    def _remove(self, entry: Entry) -> bool:
        """Whether the engine is gone: not where someone has opened it meanwhile."""
        with self._exclusive(entry.folder.name) as alone:
            if not alone:
                return False
            doomed = entry.folder
            if not _is_leftover(doomed):
                doomed = self.root / f".tmp-{entry.folder.name}-{time.time_ns()}"
                try:
                    entry.folder.rename(doomed)
                except OSError as fault:  # another process was quicker, or it is another user's
                    log.info("%s is not removed: %s", entry.folder, fault.strerror)
                    return False
            shutil.rmtree(doomed, ignore_errors=True)
        log.info("engine removed %s (%.1f MB, last used %s)", entry.folder, entry.num_bytes / 1e6, _day(entry.used_at))
        return True

    @contextmanager
    def _exclusive(self, artifact: str) -> Iterator[bool]:
        """Whether nobody else has the engine; while the block runs, nobody can come to have it."""
        mark = self._mark(artifact)
        if not mark.exists():
            yield True
            return
        handle = os.open(mark, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield self._is_alone(handle)
        finally:
            os.close(handle)

    def _is_alone(self, handle: int) -> bool:
        return _took(handle) if self.local else time.time() - os.fstat(handle).st_mtime > _ABSENT_S

    def _entry(self, folder: Path) -> Entry | None:
        """None for what was published or removed since the store was listed."""
        manifest = None
        if not _is_leftover(folder):
            with suppress(CheckpointError):
                manifest = read_manifest(folder)
        mark = self._mark(folder.name)
        try:
            used_at = (mark if mark.exists() else folder).stat().st_mtime
        except FileNotFoundError:
            return None
        with self._exclusive(_artifact_of(folder)) as alone:
            return Entry(folder, manifest, _size(folder), used_at, in_use=not alone)

    def _mark(self, artifact: str) -> Path:
        return self.root / ".used" / artifact

    def _clear(self, folder: Path) -> None:
        """Makes way for an engine: no folder without a manifest in its place, no drafts of builders that were killed.

        Whoever holds the lock is the only builder alive.
        """
        if folder.exists() and not is_engine(folder):
            log.error("engine corrupt: %s has no manifest; it is set aside", folder)
            self._move_aside(folder)
        if self.local:
            for draft in self.root.glob(f".tmp-{folder.name}-*"):
                shutil.rmtree(draft, ignore_errors=True)

    def _move_aside(self, folder: Path) -> None:
        try:
            folder.rename(self.root / f".bad-{folder.name}-{time.time_ns()}")
        except FileNotFoundError:
            log.info("another process has set %s aside already", folder)
        except OSError as fault:
            log.error("%s cannot be set aside: %s", folder, fault.strerror)


def publish(target: Path, make: Callable[[Path], None]) -> None:
    """Makes an engine in a folder beside `target` and moves it there; one that is there already stays as it is.

    Nothing is left behind when `make` raises.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
    try:
        make(draft)
        draft.chmod(0o755)
        sync(draft)
        try:
            draft.rename(target)
        except OSError:
            if not is_engine(target):
                raise
            log.info("engine %s was published by another process meanwhile", target.name)
        sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_local(path: Path) -> bool:
    """Whether the file system that `path` is or would be on belongs to this machine alone, by /proc/mounts."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()).resolve()
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True
    over = [(len(mount[1]), mount[2]) for mount in mounts if there.is_relative_to(mount[1])]
    return not over or max(over)[1] in _LOCAL


def _wait_for(handle: int, name: str) -> None:
    """Returns with the lock, or without after the timeout."""
    if _took(handle):
        return
    log.info("another process is at work on %s; waiting for it", name)
    until = time.monotonic() + _LOCK_TIMEOUT_S
    while not _took(handle):
        if time.monotonic() > until:
            log.warning("another process has been at work on %s for too long; doing it here too", name)
            return
        time.sleep(_POLL_S)


def _took(handle: int) -> bool:
    """Whether nobody else has the lock of a file: then it is taken."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    """A handle of a file that need not be there yet, nor its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _is_leftover(folder: Path) -> bool:
    return folder.name.startswith((".tmp-", ".bad-"))


def _artifact_of(folder: Path) -> str:
    """The address that an engine has, or that a leftover was to have."""
    return folder.name.split("-")[1] if _is_leftover(folder) else folder.name


def _size(folder: Path) -> int:
    """Bytes of a folder's files; of one that goes away meanwhile, those still there."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
