"""The ranges of addresses that this process uses, as Linux lists them (`man 5 proc_pid_maps`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MAPS = Path("/proc/self/maps")

_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)$", re.MULTILINE)


class Range(NamedTuple):
    """The bytes from `start` to before `end`."""

    start: int
    end: int
    permissions: bytes  # such as rw-p: read, write, not execute, private
    name: bytes  # of the mapped file, or such as [heap]; empty for most memory without a file

    @property
    def is_private(self) -> bool:
        """Whether it is memory that this process reads and writes, without a file."""
        has_no_file = self.name in {b"", b"[heap]"} or self.name.startswith(b"[anon:")
        return self.permissions == b"rw-p" and has_no_file


def ranges() -> Iterator[Range]:
    """All ranges, in the order of their addresses. Raises OSError on another system than Linux."""
    for start, end, permissions, name in _LINE.findall(_MAPS.read_bytes()):
        yield Range(int(start, 16), int(end, 16), permissions, name)


def name_of(file: Path) -> bytes:
    """The name of a range that maps this file. Names need not be UTF-8."""
    return os.path.realpath(os.fsencode(file)).replace(b"\n", rb"\012")
