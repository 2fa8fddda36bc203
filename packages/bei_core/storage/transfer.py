"""Downloads: several files at a time, each resumed where an earlier start stopped, retried, and checked at the end."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple

from bei_core.errors import CheckpointError
from bei_core.storage.errors import TransientError
from bei_core.storage.progress import Progress

log = logging.getLogger(__name__)

_THREADS = 8
_BLOCK = 16 << 20  # bytes of one read of an object store
_PAUSES_S = (0.5, 2.0, 5.0)  # before the retries; they begin again when a retry has brought something new
_PART = ".part"


class Stream(NamedTuple):
    """The content of a file, beginning at some byte."""

    begin: int  # the first byte; 0 if the source cannot resume at the byte that was requested
    size: int | None  # size of the whole file in bytes; None if unknown
    blocks: Iterator[bytes]  # raises TransientError if the source stops before the end


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded."""

    name: str  # its path in the folder that it is downloaded to
    label: str  # its URL, for messages
    size: int | None  # in bytes, as the source lists it; None if only the stream knows it
    open: Callable[[int], Stream | None]  # the content from a byte on; None if the file need not be downloaded
    md5: str | None = None  # the content's MD5 in hex, as the source lists it; None if it lists none
    # Called if the content has another MD5: False if `md5` is not an MD5 at all (S3's ETag of an encrypted file).
    is_md5: Callable[[], bool] = lambda: True
    tag: str = ""  # the source's version of the content, such as an ETag; empty if it lists none


def in_blocks(read: Callable[[int, int], bytes], size: int, label: str) -> Callable[[int], Stream]:
    """A function for `RemoteFile.open`, for a source read by ranges: `read(begin, end)` returns those bytes."""

    def blocks(begin: int) -> Iterator[bytes]:
        while begin < size:
            end = min(begin + _BLOCK, size)
            block = read(begin, end)
            if not 0 < len(block) <= end - begin:
                raise TransientError(f"{label} is truncated: {len(block)} bytes came of {end - begin} at {begin}")
            yield block
            begin += len(block)

    return lambda begin: Stream(begin, size, blocks(begin))


def fetch(
    files: Iterable[RemoteFile],
    folder: Path,
    progress: Progress | None = None,
    *,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Download files into the folder, except those that are there at their listed size.

    A TransientError is retried after growing pauses, until several tries in turn have brought nothing new. Any other
    error stops all downloads and is raised. A partial file is kept, and the next start resumes it.
    Raises CheckpointError for a file whose digest is not the listed one, and OSError for errors of the disk.
    """
    stop = Event()
    download = _Download(folder, progress, sleep, stop)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as pool:
        try:
            futures = [pool.submit(download, file) for file in files]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # the other downloads stop after their current block
    for future in done:
        future.result()


@dataclass(frozen=True)
class _Download:
    """Downloads one file; called on a thread of the pool."""

    folder: Path
    progress: Progress | None
    sleep: Callable[[float], object]
    stop: Event

    def __call__(self, file: RemoteFile) -> None:
        target = self.folder / file.name
        if file.size is not None and target.is_file() and target.stat().st_size == file.size:
            self._skip(file.size)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + _PART)
        if file.size is not None and _size(part) > file.size:
            part.unlink()
        self._skip(_size(part))
        if self._complete(file, part):
            _check(file, part)
            try:
                part.replace(target)
            except FileNotFoundError:
                if not target.is_file():  # another process may have finished first
                    raise

    def _complete(self, file: RemoteFile, part: Path) -> bool:
        """Download the rest, with retries; False if the download was stopped or the file is not needed."""
        furthest, pauses = _size(part), list(_PAUSES_S)
        while not self.stop.is_set():
            try:
                return self._receive(file, part)
            except TransientError as error:
                now = _size(part)
                if now > furthest:
                    furthest, pauses = now, list(_PAUSES_S)
                if not pauses:
                    raise
                # Only the class is logged: the message may contain a signed URL.
                reason = type(error.__cause__ or error).__name__
                log.warning(
                    "download of %s stopped at byte %d (%s); trying again in %g s", file.label, now, reason, pauses[0]
                )
                self.sleep(pauses.pop(0))
        return False

    def _receive(self, file: RemoteFile, part: Path) -> bool:
        """Append the rest to the part; returns whether it is complete. Raises TransientError if the source stops."""
        asked = _size(part)
        stream = file.open(asked)
        if stream is None:
            return False
        # Blocks are written at their offsets, so another process that downloads the same file does no harm.
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as output:
            if stream.begin < asked:
                output.truncate(stream.begin)
            output.seek(stream.begin)
            for block in stream.blocks:
                output.write(block)
                if self.progress:
                    self.progress.add(len(block))
                if self.stop.is_set():
                    return False
            end, size = output.tell(), stream.size
        if size is not None and end != size:
            raise TransientError(f"{file.label} is truncated: {end} bytes of {size} came")
        return True

    def _skip(self, count: int) -> None:
        if self.progress:
            self.progress.skip(count)


def _size(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def _check(file: RemoteFile, part: Path) -> None:
    """Compare the content with the listed MD5. If it differs, remove the part and raise CheckpointError."""
    if file.md5 is None:
        return
    digest = digest_of(part, "md5")
    if digest != file.md5 and file.is_md5():
        part.unlink()
        raise CheckpointError(
            f"{file.label} is damaged or was tampered with: its MD5 is {digest}, listed is {file.md5}"
        )


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's content, in hex."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
