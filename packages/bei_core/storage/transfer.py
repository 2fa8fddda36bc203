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
_PAUSES_S = (0.5, 2.0, 5.0)  # before each retry; there are no more retries until something new has arrived
_PART = ".part"


class Stream(NamedTuple):
    """The content of a file from a byte on."""

    begin: int  # that byte: 0 if the source cannot continue where it was asked to
    size: int | None  # bytes of the whole file, if known
    blocks: Iterator[bytes]  # raises TransientError if the source stops midway


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded."""

    name: str  # in the folder it is downloaded to
    label: str  # for messages: where it is
    size: int | None  # bytes, as listed; None if only the stream says it
    open: Callable[[int], Stream | None]  # the content from a byte on; None if it is not needed after all
    md5: str | None = None  # of the content, in hex, if the store lists it
    is_md5: Callable[[], bool] = lambda: True  # asked if it differs: whether `md5` is the content's digest at all
    tag: str = ""  # differs for another content, if the store lists one


def in_blocks(read: Callable[[int, int], bytes], size: int, label: str) -> Callable[[int], Stream]:
    """`RemoteFile.open` of a source that is read by ranges: `read(begin, end)` returns bytes of the file."""

    def blocks(begin: int) -> Iterator[bytes]:
        while begin < size:
            end = min(begin + _BLOCK, size)
            block = read(begin, end)
            if not 0 < len(block) <= end - begin:
                came = f"{len(block)} bytes came of {end - begin} at {begin}"
                raise TransientError(f"{label} is truncated: {came}")
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

    TransientError of a source is retried with growing pauses, a few times while nothing new arrives. The first error
    stops the other downloads and is raised. What has arrived stays for the next start.
    Raises CheckpointError for a file whose digest is not the listed one, OSError of the disk.
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
    """One file, on a thread of the pool."""

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
        """Whether the part is complete. It is not if the download was stopped, or is not needed after all."""
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
                # The class alone: the message may have a signed URL in it.
                reason = type(error.__cause__ or error).__name__
                log.warning("%s stopped at byte %d (%s); trying again in %g s", file.label, now, reason, pauses[0])
                self.sleep(pauses.pop(0))
        return False

    def _receive(self, file: RemoteFile, part: Path) -> bool:
        """Append the rest to the part; returns whether all of it came. Raises TransientError if the source stops."""
        asked = _size(part)
        stream = file.open(asked)
        if stream is None:
            return False
        # Written at its offset: another process that writes the same part writes the same bytes.
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
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def _check(file: RemoteFile, part: Path) -> None:
    """Raise CheckpointError if the content is not what was listed. The part is removed then."""
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
