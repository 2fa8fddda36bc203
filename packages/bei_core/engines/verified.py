"""The files of an engine folder that were checked on this machine, so that a start need not read them all again.

The record is in TUNED, which no manifest lists. A file that is written, replaced or copied is checked again: it has
another inode, size or time of modification.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeAlias

import msgspec

from bei_core.engines.manifest import TUNED, Manifest, check_digests
from bei_core.storage.cache import write_atomically

log = logging.getLogger(__name__)

_RECORD = f"{TUNED}/verified.json"

_Stamps: TypeAlias = dict[str, tuple[str, int, int, int]]  # digest, inode, size, time of modification in nanoseconds


def check_once(folder: Path, manifest: Manifest) -> None:
    """Check every digest unless the files are those that were right before. Raises as `check_digests`."""
    stamps = _stamps(folder, manifest)  # taken first: a file that changes during the check is checked again
    if stamps is not None and stamps == _recorded(folder):
        return
    check_digests(folder, manifest)
    try:
        write_atomically(folder / _RECORD, msgspec.json.encode(stamps))
    except OSError as error:  # the next start checks again
        log.debug("the check of %s is not recorded: %s", folder, error)


def _stamps(folder: Path, manifest: Manifest) -> _Stamps | None:
    """What the files are now; None if one cannot be read."""
    try:
        found = {name: (folder / name).stat() for name in manifest.files}
    except OSError:
        return None
    return {name: (manifest.files[name].sha256, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in found.items()}


def _recorded(folder: Path) -> _Stamps | None:
    """What the files were when they were checked last; None without a record."""
    try:
        return msgspec.json.decode((folder / _RECORD).read_bytes(), type=_Stamps)
    except (OSError, msgspec.MsgspecError):
        return None
