"""Where fetched checkpoints lie: in the cache, by source and revision, each published whole.

    <root>/<source>/<revision>/   a checkpoint, and in it SOURCE: where it is from, and the size of each file
    <root>/<source>/.partial-*/   being fetched; the next start goes on from there
    <root>/<source>/.refs/        the revision that something stood for: `last`, or the digest of a URL's validators
    <root>/<source>/.lock         held by the process that fetches
    <root>/<source>/.used         held by whoever fetches or reads, so that nothing of the source is removed meanwhile

A folder appears by a rename, so that whoever sees it sees all of it. The lock saves work and no more: two processes
that fetch one revision all the same (a network volume without locks) write the same bytes to the same places.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bei_core.checkpoint.folder import Checkpoint
from bei_core.errors import CheckpointError
from bei_core.storage.disk import writing
from bei_core.storage.marks import Held, Mark, is_local

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger(__name__)

SOURCE = ".source.json"
LAST = "last"
_PARTIAL = ".partial-"
_REFS = ".refs"
_REVISION = re.compile(r"[0-9a-f]{64}")
_ABANDONED_S = 24 * 3600.0


class Source(msgspec.Struct, frozen=True):
    """What SOURCE says."""

    source: str
    revision: str
    files: dict[str, int]  # bytes by name


class Place:
    """The folder of one source."""

    def __init__(self, root: Path, source: str) -> None:
        self.source = source
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", source.partition("://")[2]).strip("-.")[-48:]
        self.folder = root / f"{slug}-{hashlib.sha256(source.encode()).hexdigest()[:16]}"

    def pinned(self, revision: str | None, what: str) -> Path | None:
        """The checkpoint of a revision that was asked for, as `find`. Raises CheckpointError for what is none."""
        if revision is not None and _REVISION.fullmatch(revision) is None:
            raise CheckpointError(
                f"{self.source}: a revision is the SHA-256 of the {what}, 64 hex digits, not {revision}"
            )
        return self.find(revision) if revision else None

    def find(self, revision: str) -> Path | None:
        """The checkpoint, if it is there and whole; one that lost something is thrown away, with a warning."""
        folder = self.folder / revision
        if not folder.is_dir():
            return None
        with writing(self.folder):
            fault = _fault(folder)
        if fault is None:
            with suppress(OSError):
                os.utime(folder)  # so that what is used least recently is known
            return folder
        log.warning("%s is damaged (%s); it is fetched again", folder, fault)
        aside = self.folder / f".bad-{uuid.uuid4().hex}"
        with writing(self.folder), suppress(FileNotFoundError):  # another process may have been quicker
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return None

    def last(self) -> tuple[str, Path] | None:
        """Revision and folder of what was fetched or found last, if it is still there."""
        revision = self.noted(LAST)
        folder = self.find(revision) if revision else None
        return (revision, folder) if revision and folder else None

    def partial(self, name: str) -> Path:
        """The folder in which what has `name` is being fetched; it may hold what an earlier start left."""
        return self.folder / f"{_PARTIAL}{name}"

    def check(self, folder: Path, revision: str) -> None:
        """Raises CheckpointError where a fetched folder is no whole model; then nothing of it is kept."""
        try:
            Checkpoint(folder, self.source, revision).check()
        except CheckpointError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def publish(self, folder: Path, revision: str) -> Path:
        """The folder of the revision, which `folder` becomes; one that is there already stays."""
        target = self.folder / revision
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
        with writing(self.folder):
            (folder / SOURCE).write_bytes(msgspec.json.encode(Source(self.source, revision, files)))
            for path in _files(folder):
                _flush(path)
            try:
                folder.rename(target)
            except OSError:
                if self.find(revision) is None:
                    raise
                shutil.rmtree(folder, ignore_errors=True)
        return target

    def note(self, ref: str, revision: str) -> None:
        """Remembers what `ref` stood for; no harm is done where the cache may only be read."""
        draft = self.folder / _REFS / f".tmp-{uuid.uuid4().hex}"
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(revision)
            draft.replace(draft.parent / ref)
        except OSError as fault:
            log.debug("cannot note %s in %s: %s", ref, self.folder, fault)

    def noted(self, ref: str) -> str | None:
        """The revision that `ref` stood for."""
        path = self.folder / _REFS / ref
        with writing(self.folder):
            text = path.read_text().strip() if path.is_file() else ""
        return text if _REVISION.fullmatch(text) else None

    def hold(self) -> Held | None:
        """What is fetched of the source, safe from removal; None where nothing can be marked: others may remove it."""
        try:
            return _mark(self.folder).hold(self.folder)
        except OSError as fault:
            log.debug("%s is not held: %s", self.folder, fault)
            return None

    @contextmanager
    def alone(self) -> Iterator[str]:
        """Holds the lock, having waited for another process that has it; a name for what is this process's alone.

        Where there are no locks, or nothing may be written, it holds none: whoever then writes is told.
        """
        lock = self._locked()
        try:
            yield socket.gethostname() if lock else uuid.uuid4().hex  # a volume's locks may hold on one host only
            self._clear()
        finally:
            if lock is not None:
                lock.release()

    def _clear(self) -> None:
        """Removes partials that nobody went on with: of revisions that are no more."""
        for left in self.folder.glob(f"{_PARTIAL}*"):
            if _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)

    def _locked(self) -> FileLock | None:
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                log.info("waiting for another process that fetches %s", self.source)
                lock.acquire()
        except (OSError, NotImplementedError) as fault:
            log.debug("no lock in %s: %s", self.folder, fault)
            return None
        return lock


class Kept(NamedTuple):
    """A folder in which a checkpoint is, or is being fetched, or was."""

    folder: Path
    mark: Mark  # held by whoever uses it
    what: str  # for people: source@revision; of what is not whole, what it is
    is_leftover: bool  # of no use to anybody


def kept(root: Path) -> list[Kept]:
    """All that is in the cache of checkpoints."""
    sources = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    inside = [path for source in sources for path in source.iterdir() if path.is_dir() and path.name != _REFS]
    return [one for path in inside if (one := _kept(path)) is not None]


def _kept(folder: Path) -> Kept | None:
    """None for what is no folder of ours, or is there no more."""
    mark = _mark(folder.parent)
    if _REVISION.fullmatch(folder.name):
        return Kept(folder, mark, _described(folder), is_leftover=False)
    if folder.name.startswith(_PARTIAL):
        with suppress(FileNotFoundError):
            return Kept(folder, mark, "partly fetched", is_leftover=_is_abandoned(folder))
    if folder.name.startswith((".bad-", ".tmp-")):
        return Kept(folder, mark, "left over", is_leftover=True)
    return None


def _mark(folder: Path) -> Mark:
    return Mark(folder / ".used", is_local(folder))


def _described(folder: Path) -> str:
    """Where a checkpoint is from, as far as that can be read."""
    try:
        source = msgspec.json.decode((folder / SOURCE).read_bytes(), type=Source)
    except (OSError, msgspec.DecodeError):
        return "damaged"
    return f"{source.source}@{source.revision[:12]}"


def _is_abandoned(partial: Path) -> bool:
    return time.time() - partial.stat().st_mtime > _ABANDONED_S


def _fault(folder: Path) -> str | None:
    """What a published folder lacks, by its own list."""
    try:
        source = msgspec.json.decode((folder / SOURCE).read_bytes(), type=Source)
    except (OSError, msgspec.DecodeError) as fault:
        return f"{SOURCE}: {fault}"
    for name, count in source.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != count:
            return f"{name} has {found} bytes of {count}"
    return None


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _flush(path: Path) -> None:
    """Sees to it that a file outlives a loss of power: the rename after it may be on the disk before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
