"""What a disk refuses, as an error that names the path, the reason and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bei_core.errors import DiskError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Advice(NamedTuple):
    """What helps where a folder is full or closed."""

    tidy: str  # what frees space there
    setting: str  # what names another folder


CACHE = Advice("bei engines prune --max-gb N removes what was used least recently", "cache_dir (BEI_CACHE_DIR)")
OUTPUT = Advice("bei engines prune --max-gb N helps where the cache is on that disk", "--output")


@contextmanager
def writing(folder: Path, advice: Advice = CACHE) -> Iterator[None]:
    """Turns what the disk refuses inside `with` into DiskError; `folder` is what is written to."""
    try:
        yield
    except OSError as fault:
        raise disk_error(fault, folder, advice) from fault


def disk_error(fault: OSError, folder: Path, advice: Advice = CACHE) -> DiskError:
    """The error for what a disk refused while `folder` was read or written."""
    # A full disk is the folder's: what was being written is gone, and a copy's error names the file that was read.
    where = folder if is_full(fault) else fault.filename2 or fault.filename or folder
    return DiskError(f"cannot read or write {where}: {fault.strerror or fault}; {_help(fault, advice)}")


def is_full(fault: BaseException) -> bool:
    """Whether a disk, a quota or a limit on files' sizes has no room."""
    return isinstance(fault, OSError) and fault.errno in _FULL


def is_of_disk(fault: OSError) -> bool:
    """Whether an error, among others of the network, is certainly a disk's: a socket is closed too, but has no name."""
    return fault.errno in _FULL | {errno.EIO} or (fault.errno in _CLOSED and fault.filename is not None)


def _help(fault: OSError, advice: Advice) -> str:
    if is_full(fault):
        return f"free some space there ({advice.tidy}), or set {advice.setting} to a folder on a larger disk"
    if fault.errno in _CLOSED:
        return f"let this user read and write there, or set {advice.setting} to a folder that can be written"
    if fault.errno == errno.EIO:
        return f"the disk is failing, or its volume is away: look at it, or set {advice.setting} to a folder elsewhere"
    return f"look at it, or set {advice.setting} to another folder"
