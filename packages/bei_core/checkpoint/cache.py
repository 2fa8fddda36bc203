"""Fetched checkpoints in the cache: one folder for each source, with one entry for each revision.

<root>/<source>/<revision>/   a checkpoint, with a file SOURCE: its source, revision, and the size of each file
<root>/<source>/.partial-*/   a checkpoint that is being fetched; the next start resumes it
<root>/<source>/.refs/        refs to revisions: `last`, and digests of a URL's validators (ETag, Last-Modified)
<root>/<source>/.lock         locked by the process that fetches
<root>/<source>/.used         the lease of the processes that fetch or read any revision of the source
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bei_core.checkpoint.folder import Checkpoint
from bei_core.errors import CheckpointError
from bei_core.storage.cache import BAD, TMP, Cache, Rank, Record, RecordType, files_of
from bei_core.storage.errors import TransientError, decode_record, translate_os_errors

log = logging.getLogger(__name__)

SOURCE = ".source.json"
LAST = "last"
_PARTIAL = ".partial-"
_REVISION = re.compile(r"[0-9a-f]{64}")
_ABANDONED_S = 24 * 3600.0


class Source(msgspec.Struct, frozen=True):
    """The content of the file SOURCE."""

    source: str
    revision: str
    files: dict[str, int]  # size in bytes of each file, by name


class CheckpointRecords(RecordType):
    """Revisions of one source, which share their lease and lock."""

    lease, lock, ref = ".used", ".lock", ".refs/{}"
    lock_timeout_s = math.inf  # a large checkpoint takes long
    locks_network_volumes = True  # it often saves a second fetch, which does no harm if the lock does not work

    def name_of(self, folder: str) -> str | None:
        """The folder's own name, also for leftovers: all of a source share one lease."""
        is_ours = _REVISION.fullmatch(folder) or folder.startswith((_PARTIAL, BAD, TMP))
        return folder if is_ours else None

    def describe(self, folder: Path) -> Record:
        """A partly fetched checkpoint counts as a checkpoint for a day, because the next start may resume it."""
        if folder.name.startswith(_PARTIAL) and not _is_abandoned(folder):
            return Record(Rank.INPUT, "checkpoint", "checkpoint", "partly fetched")
        if not _REVISION.fullmatch(folder.name):
            return Record(Rank.UNWANTED, "leftover", "leftover")
        try:
            source = _read_source(folder)
        except (OSError, msgspec.DecodeError):
            return Record(Rank.INPUT, "checkpoint", "checkpoint", "damaged")
        return Record(Rank.INPUT, "checkpoint", "checkpoint", f"{source.source}@{source.revision[:12]}")

    def fault(self, folder: Path) -> str | None:
        """The first file that is missing or has another size than in SOURCE."""
        try:
            source = _read_source(folder)
        except (OSError, msgspec.DecodeError) as error:
            return f"{SOURCE}: {error}"
        for name, count in source.files.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != count:
                return f"{name} has {found} bytes of {count}"
        return None


class SourceCache(Cache):
    """The checkpoints of one source."""

    def __init__(self, root: Path, source: str) -> None:
        self.source = source
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", source.partition("://")[2]).strip("-.")[-48:]
        super().__init__(root / f"{slug}-{hashlib.sha256(source.encode()).hexdigest()[:16]}", CheckpointRecords())

    def find_pinned(self, revision: str, what: str) -> Path | None:
        """The folder of a requested revision, if it is in the cache. Raises CheckpointError unless it is a SHA-256."""
        if _REVISION.fullmatch(revision) is None:
            raise CheckpointError(
                f"{self.source}: a revision is the SHA-256 of the {what}, 64 hex digits, not {revision}"
            )
        return self.find(revision)

    def get_revision(self, ref: str) -> str | None:
        """The revision that a ref points to; None if there is none."""
        text = (self.get_ref(ref) or b"").decode(errors="replace").strip()
        return text if _REVISION.fullmatch(text) else None

    def find_last(self, revision: str | None, error: TransientError) -> Checkpoint:
        """The checkpoint that was used last, with a warning, because the source does not answer (`error`).

        Raises TransientError if there is none, or if a revision is requested.
        """
        last, reason = self.get_revision(LAST), str(error).rstrip(".")
        folder = self.find(last) if last else None
        if revision or last is None or folder is None:
            missing = f"revision {revision} is not" if revision else "no revision is"
            raise TransientError(f"{reason}. And {missing} in the cache") from error
        log.warning("%s. Serving revision %s, which was fetched last.", reason, last)
        return self.checkpoint(last, folder)

    def checkpoint(self, revision: str, folder: Path) -> Checkpoint:
        """The checkpoint in a folder; the ref `last` points to it from now on."""
        if self.get_revision(LAST) != revision:
            self.set_ref(LAST, revision.encode())
        return Checkpoint(folder, self.source, revision)

    @contextmanager
    def fetching(self) -> Iterator[str]:
        """Take the source's lock; yields a name for this process's partial folder. Then removes abandoned ones."""
        with self.lock("") as locked:
            # On a network volume, the lock may exclude only processes of the same host.
            yield socket.gethostname() if locked else uuid.uuid4().hex
            for left in self.root.glob(f"{_PARTIAL}*"):
                if _is_abandoned(left):
                    shutil.rmtree(left, ignore_errors=True)

    def partial(self, name: str) -> Path:
        """The folder for a fetch. It may contain files that an earlier start has fetched."""
        return self.root / f"{_PARTIAL}{name}"

    def publish_checkpoint(self, folder: Path, revision: str) -> Path:
        """Check a fetched folder and publish it; returns the entry's folder.

        If it is not a whole model, it is removed. Raises CheckpointError then, and DiskError.
        """
        try:
            Checkpoint(folder, self.source, revision).check()
        except CheckpointError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.seal(folder, revision)

    def seal(self, folder: Path, revision: str) -> Path:
        """Write SOURCE into the folder and publish it; returns the entry's folder. Raises DiskError."""
        with translate_os_errors(self.root):
            files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_of(folder)}
            (folder / SOURCE).write_bytes(msgspec.json.encode(Source(self.source, revision, files)))
        return self.publish(revision, folder)


def source_caches(root: Path) -> list[Cache]:
    """The caches of all sources. Raises OSError."""
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return [Cache(folder, CheckpointRecords()) for folder in folders]


def _read_source(folder: Path) -> Source:
    return decode_record((folder / SOURCE).read_bytes(), Source)


def _is_abandoned(partial: Path) -> bool:
    """Whether no process has resumed a partial folder for a day: the source has another revision now."""
    return time.time() - partial.stat().st_mtime > _ABANDONED_S
