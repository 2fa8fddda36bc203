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

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from bei_core.checkpoint.place import kept
from bei_core.engines.manifest import Address, Manifest, is_engine, read_manifest, sync, verify
from bei_core.errors import CheckpointError, DiskError, EngineCorruptError
from bei_core.storage.disk import disk_error, writing
from bei_core.storage.marks import Held as Held
from bei_core.storage.marks import Mark, is_local, open_file, took

log = logging.getLogger(__name__)

# After this long another's build is taken for stuck, and one is made beside it.
_LOCK_TIMEOUT_S = 1800.0
_POLL_S = 0.05

_ADDRESS = re.compile(r"[0-9a-f]{32}")
_LEFTOVER = re.compile(r"\.(?:tmp|bad)-([0-9a-f]{32})-.*")  # and whose it is

# What an entry is, in the order in which they go: checkpoints before engines, whose starts need them no more.
Kind = Literal["leftover", "damaged", "checkpoint", "engine", "foreign"]
_GOES = {"leftover": 0, "damaged": 0, "checkpoint": 1, "engine": 2, "foreign": 2}


class Request(msgspec.Struct, frozen=True):
    """What a request for a model was answered with."""

    artifact: Address
    source: str
    revision: str  # the commit that a branch named then


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine of the store, what is left of one, or a checkpoint that was fetched to build one.

    A leftover is being built or taken away, or was set aside; a foreign engine is another version's of BEI, or may not
    be read by this user.
    """

    folder: Path
    kind: Kind
    manifest: Manifest | None  # of an engine
    num_bytes: int
    used_at: float  # seconds since the epoch
    in_use: bool
    mark: Mark
    what: str = ""  # of a checkpoint, for people


class Store:
    """The engines under one folder, of which there may be many users, on many machines where it is a network volume.

    `max_bytes` is of them and of the fetched checkpoints, which are under a folder of their own.
    """

    def __init__(
        self,
        root: Path,
        *,
        checkpoints: Path | None = None,
        max_bytes: int | None = None,
        local: bool | None = None,
    ) -> None:
        self.root = root
        self._checkpoints = checkpoints
        self._max_bytes = max_bytes
        self.local = is_local(root) if local is None else local

    def folder(self, artifact: str) -> Path:
        """Where the engine of that address is or would be."""
        return self.root / artifact

    def obtain(self, artifact: str, make: Callable[[Path], None]) -> Held:
        """The engine of that address, held; `make` fills a folder with it, manifest and all, where there is none.

        Of many processes that ask at once, one makes it and the others wait. Raises what `make` does, and DiskError.
        """
        held = self.hold(artifact)
        try:
            if not is_engine(held.folder):
                with self.locked(artifact) as is_locked:
                    if not is_engine(held.folder):
                        self._clear(held.folder, drafts=is_locked)
                        with writing(self.root):
                            publish(held.folder, make)
                        self._make_room()
        except BaseException:
            held.release()
            raise
        return held

    def hold(self, artifact: str) -> Held:
        """The place of an engine, whether or not it is there, safe from eviction.

        Raises DiskError where it is not there and could not be put there.
        """
        mark, folder = self._mark(artifact), self.folder(artifact)
        try:
            return mark.hold(folder)
        except OSError as fault:
            if not is_engine(folder):
                raise disk_error(fault, self.root) from fault
            log.info("%s cannot be marked as in use (%s); whoever may remove it can", folder, fault.strerror)
            return Held(folder, os.open(os.devnull, os.O_RDONLY), mark.path, beat=False)

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Whether it holds a lock that other processes wait for: not after half an hour, nor where `_lock` has none."""
        handle = self._lock(name)
        if handle is None:
            yield False
            return
        try:
            yield _wait_for(handle, name)
        finally:
            os.close(handle)

    def _lock(self, name: str) -> int | None:
        """The file to lock; None on a network volume, and where nothing can be written: there nobody builds."""
        try:
            return open_file(self.root / ".locks" / name) if self.local else None
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
        """Moves a damaged engine out of the way, so that it is made again; it goes when room is made.

        A whole one stays: another process has met the same damage, and made it again.
        """
        with self.locked(folder.name):
            try:
                verify(folder)
            except (CheckpointError, DiskError):
                self._move_aside(folder)
            else:
                log.info("another process has made %s again already", folder)

    def _make_room(self) -> None:
        """`trim`; the engine that was made is there all the same where that cannot be."""
        try:
            self.trim()
        except DiskError as fault:
            log.warning("no room is made: %s", fault)

    def entries(self) -> list[Entry]:
        """What is in the store, the least recently used first. Raises DiskError."""
        with writing(self.root):
            folders = [path for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []
            ours = [path for path in folders if _ADDRESS.fullmatch(path.name) or _is_leftover(path)]
            there = [entry for path in ours if (entry := self._entry(path)) is not None]
        return sorted(there, key=lambda entry: entry.used_at)

    def checkpoints(self) -> list[Entry]:
        """The fetched checkpoints, whole or not, the least recently used first. Raises DiskError."""
        if self._checkpoints is None:
            return []
        there = []
        with writing(self._checkpoints):
            for one in kept(self._checkpoints):
                kind: Kind = "leftover" if one.is_leftover else "checkpoint"
                with suppress(FileNotFoundError):
                    used_at, in_use = one.folder.stat().st_mtime, one.mark.is_used()
                    there.append(Entry(one.folder, kind, None, _size(one.folder), used_at, in_use, one.mark, one.what))
        return sorted(there, key=lambda entry: entry.used_at)

    def trim(self, max_bytes: int | None = None) -> list[Entry]:
        """What was removed: leftovers; then, until the rest fits, checkpoints and then engines, the oldest use first.

        None that is in use. A checkpoint or leftover that is drives no engine out: it can go itself soon. Raises
        DiskError.
        """
        limit = self._max_bytes if max_bytes is None else max_bytes
        entries = [*self.entries(), *self.checkpoints()]
        total = sum(entry.num_bytes for entry in entries if entry.kind in {"engine", "foreign"} or not entry.in_use)
        removed = []
        with writing(self.root):
            for entry in sorted(entries, key=lambda entry: (_GOES[entry.kind], entry.used_at)):
                unwanted = not _GOES[entry.kind] or (limit is not None and total > limit)
                if unwanted and not entry.in_use and _remove(entry):
                    removed.append(entry)
                    total -= entry.num_bytes
        return removed

    def _entry(self, folder: Path) -> Entry | None:
        """None for what was published or removed since the store was listed."""
        kind, manifest = _look(folder)
        mark = self._mark_of(folder)
        used = mark.path if mark.path.exists() and not _is_leftover(folder) else folder
        try:
            used_at = used.stat().st_mtime
        except FileNotFoundError:
            return None
        return Entry(folder, kind, manifest, _size(folder), used_at, mark.is_used(), mark)

    def _mark_of(self, folder: Path) -> Mark:
        """What tells of a folder of the store whether it is used.

        Of what was set aside the engine's mark does not, since there is another one in its place: it stays for a day,
        to be looked at. So do drafts on a network volume, where nothing else tells whether their builders live.
        """
        left = _LEFTOVER.fullmatch(folder.name)
        if left is None:
            return self._mark(folder.name)
        by_age = not self.local or folder.name.startswith(".bad-")
        return Mark(folder, local=False) if by_age else self._mark(left[1])

    def _mark(self, artifact: str) -> Mark:
        return Mark(self.root / ".used" / artifact, self.local)

    def _clear(self, folder: Path, *, drafts: bool) -> None:
        """Makes way for an engine: no folder without a manifest in its place and, with the lock, no `drafts` of others.

        Whoever holds the lock is the only builder alive; whoever gave up waiting for it is not.
        """
        if folder.exists() and not is_engine(folder):
            log.error("engine corrupt: %s has no manifest; it is set aside", folder)
            self._move_aside(folder)
        if drafts:
            for draft in self.root.glob(f".tmp-{folder.name}-*"):
                shutil.rmtree(draft, ignore_errors=True)

    def _move_aside(self, folder: Path) -> None:
        try:
            aside = folder.rename(self.root / f".bad-{folder.name}-{time.time_ns()}")
            with suppress(OSError):
                os.utime(aside)  # its age is since now
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


def _look(folder: Path) -> tuple[Kind, Manifest | None]:
    """What a folder of the store is."""
    if _is_leftover(folder):
        return "leftover", None
    try:
        return "engine", read_manifest(folder)
    except EngineCorruptError:
        return "damaged", None
    except CheckpointError:  # another version's, or none
        return ("foreign" if is_engine(folder) else "damaged"), None
    except DiskError:
        return "foreign", None


def _remove(entry: Entry) -> bool:
    """Whether it is gone: not where someone has opened it meanwhile."""
    with entry.mark.alone() as alone:
        if not alone:
            return False
        doomed = entry.folder
        if entry.kind != "leftover":
            doomed = doomed.with_name(f".tmp-{doomed.name}-{time.time_ns()}")
            try:
                entry.folder.rename(doomed)
            except OSError as fault:  # another process was quicker, or it is another user's
                log.info("%s is not removed: %s", entry.folder, fault.strerror)
                return False
        shutil.rmtree(doomed, ignore_errors=True)
    if doomed.exists():
        log.warning("%s cannot be removed: not all of it is this user's", doomed)
        return False
    what = {"leftover": "", "checkpoint": "checkpoint "}.get(entry.kind, "engine ")
    log.info("%sremoved %s (%.1f MB, last used %s)", what, entry.folder, entry.num_bytes / 1e6, _day(entry.used_at))
    return True


def _wait_for(handle: int, name: str) -> bool:
    """Whether the lock was taken before the timeout."""
    if took(handle):
        return True
    log.info("another process is at work on %s; waiting for it", name)
    until = time.monotonic() + _LOCK_TIMEOUT_S
    while not took(handle):
        if time.monotonic() > until:
            log.warning("another process has been at work on %s for too long; doing it here too", name)
            return False
        time.sleep(_POLL_S)
    return True


def _is_leftover(folder: Path) -> bool:
    return _LEFTOVER.fullmatch(folder.name) is not None


def _size(folder: Path) -> int:
    """Bytes of a folder's files; of one that goes away meanwhile, those still there."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
