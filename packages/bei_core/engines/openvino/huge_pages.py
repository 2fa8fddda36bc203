"""Moves memory of this process that is full to huge pages (2 MB each on x86).

A batch reads all weights and writes all activations. These are more pages of 4 KB than the processor keeps addresses
of (its TLB), and each miss is expensive in a virtual machine (docs/decisions/039-huge-pages.md). Most systems give huge
pages to a process only if it asks for them.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_PROCESS = Path("/proc/self")

_ADVICE_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1: move these pages to a huge page now
_ADVICE_HUGE = 14  # MADV_HUGEPAGE: the kernel may move them later

# Only a range of which this share is in use is moved, so that the process does not get larger by more than the rest.
_MIN_SHARE = 0.9

_PAUSES = 3  # after each move, the thread sleeps for so many times its duration

_one_at_a_time = threading.Lock()


def move_later() -> None:
    """Starts a thread that moves the memory of this process to huge pages."""
    threading.Thread(target=_move, name="bei-huge-pages", daemon=True).start()


def move_to_huge_pages() -> int:
    """Moves each full range of private memory to a huge page. Returns the number of bytes in ranges that were moved.

    Ranges that already are huge pages count, too. Returns 0 where the system has no huge pages or denies them.
    """
    size, library, moved = _huge_page_size(), ctypes.CDLL(None), 0
    for address in _full_ranges(size) if size else ():
        started = time.perf_counter()
        if not library.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _ADVICE_COLLAPSE):
            moved += size
        else:  # an older kernel, or no huge page is free
            library.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _ADVICE_HUGE)
        time.sleep(_PAUSES * (time.perf_counter() - started))
    return moved


def _move() -> None:
    with _one_at_a_time:
        started = time.perf_counter()
        moved = move_to_huge_pages()
    log.debug("%d MB of memory are in huge pages, after %.1f s", moved >> 20, time.perf_counter() - started)


def _huge_page_size() -> int:
    """Bytes of a huge page; 0 if the system has none or denies them."""
    try:
        if "[never]" in (_SYSTEM / "enabled").read_text():
            return 0
        return int((_SYSTEM / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def _full_ranges(size: int) -> Iterator[int]:
    """Addresses of the ranges of `size` bytes, aligned to it, of private memory that are in use."""
    try:
        lines = [line.split(maxsplit=5) for line in (_PROCESS / "maps").read_text().splitlines()]
    except OSError:
        return
    for address, permissions, *_, inode, name in (line if len(line) == 6 else [*line, ""] for line in lines):
        if permissions != "rw-p" or inode != "0" or not (name in {"", "[heap]"} or name.startswith("[anon:")):
            continue
        start, end = (int(part, 16) for part in address.split("-"))
        first = -(-start // size) * size
        in_use = _pages_in_use(first, (end - first) // size * size)
        shares = in_use.reshape(-1, size // mmap.PAGESIZE).mean(1)
        yield from (first + int(index) * size for index in np.flatnonzero(shares >= _MIN_SHARE))


def _pages_in_use(start: int, num_bytes: int) -> npt.NDArray[np.uint8]:
    """For each page of a range, 1 if it is in memory, else 0; empty if the range no longer exists."""
    found = np.zeros(max(num_bytes, 0) // mmap.PAGESIZE, np.uint8)
    if len(found) and ctypes.CDLL(None).mincore(
        ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), found.ctypes.data_as(ctypes.c_void_p)
    ):
        return found[:0]
    return found & np.uint8(1)
