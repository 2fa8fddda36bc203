"""Files to a folder: several at a time, each from where an earlier start stopped, checked before it has its name."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from bei_core.errors import CheckpointError
from bei_core.storage.disk import writing
from bei_core.storage.progress import Progress

log = logging.getLogger(__name__)

_THREADS = 8
_BLOCK = 16 << 20  # bytes asked for at once
_PAUSES_S = (0.5, 2.0, 5.0)  # before each further try
_PART = ".part"


@dataclass(frozen=True)
class Remote:
    """A file as its store lists it."""

    name: str  # in the folder
    label: str  # for people: where it is
    size: int
    read: Callable[[int, int], bytes]  # from a byte up to another
    md5: str | None = None  # of the content, hex, where the store says it
    is_md5: Callable[[], bool] = lambda: True  # asked where it disagrees: whether it is the content's digest at all
    tag: str = ""  # another for another content, where the store says one


def fetch(
    remotes: Iterable[Remote],
    folder: Path,
    progress: Progress | None = None,
    *,
    lasting: Callable[[BaseException], bool] = lambda fault: False,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Fetches the files into the folder, but for those that are there.

    What `read` raises is tried again a few times, unless `lasting` says that it is of no use. The first error ends the
    others and is raised; what has come stays for the next start.
    Raises CheckpointError naming a file whose size or digest is not what was listed, DiskError.
    """
    stop = Event()
    one = _Fetch(folder, progress, lasting, pause, stop)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as pool:
        try:
            futures = [pool.submit(one, remote) for remote in remotes]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # the others end after the block that they are at
    for future in done:
        future.result()


@dataclass(frozen=True)
class _Fetch:
    """One file, on a thread of the pool."""

    folder: Path
    progress: Progress | None
    lasting: Callable[[BaseException], bool]
    pause: Callable[[float], object]
    stop: Event

    def __call__(self, remote: Remote) -> None:
        target = self.folder / remote.name
        if target.is_file() and target.stat().st_size == remote.size:
            self._skip(remote.size)
            return
        with writing(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + _PART)
        if self._complete(remote, part):
            with writing(self.folder):
                _check(remote, part)
                try:
                    part.replace(target)
                except FileNotFoundError:
                    if not target.is_file():  # it is there where another process was quicker
                        raise

    def _complete(self, remote: Remote, part: Path) -> bool:
        """Whether the part became whole: not so where the others were stopped."""
        begin = part.stat().st_size if part.is_file() else 0
        if begin > remote.size:
            part.unlink()
            begin = 0
        self._skip(begin)
        self._write(part, begin, b"")
        while begin < remote.size:
            if self.stop.is_set():
                return False
            block = self._read(remote, begin)
            self._write(part, begin, block)
            begin += len(block)
            if self.progress:
                self.progress.add(len(block))
        return True

    def _write(self, part: Path, begin: int, block: bytes) -> None:
        """Writes a block where it belongs, not at the end: another process that writes here too writes the same."""
        with writing(self.folder), open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            file.seek(begin)
            file.write(block)

    def _read(self, remote: Remote, begin: int) -> bytes:
        """The next block. Raises what the last try raised."""
        for pause_s in _PAUSES_S:
            try:
                return _block(remote, begin)
            except Exception as fault:
                if self.lasting(fault):
                    raise
                # The class alone: what it says may have a signed URL in it.
                log.warning("%s at byte %d: %s; trying again", remote.label, begin, type(fault).__name__)
                self.pause(pause_s)
        return _block(remote, begin)

    def _skip(self, count: int) -> None:
        if self.progress:
            self.progress.skip(count)


def _block(remote: Remote, begin: int) -> bytes:
    """Some bytes from `begin` on, at least one. Raises CheckpointError where the store gives another number."""
    end = min(begin + _BLOCK, remote.size)
    block = remote.read(begin, end)
    if not 0 < len(block) <= end - begin:
        raise CheckpointError(f"{remote.label} is truncated: {len(block)} bytes came of {end - begin} at {begin}")
    return block


def _check(remote: Remote, part: Path) -> None:
    """Raises CheckpointError where the content is not what was listed; then nothing of it is kept."""
    if remote.md5 is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != remote.md5 and remote.is_md5():
        part.unlink()
        raise CheckpointError(
            f"{remote.label} is damaged or was tampered with: its MD5 is {digest.hexdigest()}, listed is {remote.md5}"
        )
