"""Moves private memory of this process to huge pages (2 MB each on x86), where all of it is in use.

A batch reads all weights and writes all activations. These are more pages of 4 KB than the processor's TLB has entries
for, and each miss is expensive in a virtual machine (docs/decisions/039-huge-pages.md). Most systems give huge pages to
a process only if it asks for them.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from bei_core.engines.openvino.memory_map import ranges

log = logging.getLogger(__name__)

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_PAGES = Path("/proc/self/pagemap")

_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1: move these pages to a huge page now

# A larger page (512 MB on Arm with pages of 64 KB) would stop the process for long while it is moved.
_MAX_SIZE = 32 << 20

# An entry of /proc/self/pagemap has these two bits if the page is in memory, and mapped by this process only. The zero
# page, and pages that a process shares with the one that it was forked from, do not have the second.
_OWN = np.uint64(1 << 63 | 1 << 56)

_RANGES_AT_ONCE = 64  # that are looked at before they are moved
_PAUSES = 9  # after each move, the thread sleeps for so many times its duration: it takes a tenth of a processor

_passes = threading.BoundedSemaphore(2)  # one that runs, and one that waits for it
_one_at_a_time = threading.Lock()


def move_later() -> None:
    """Starts a thread that moves the memory of this process to huge pages, unless one is waiting already."""
    if _passes.acquire(blocking=False):
        try:
            threading.Thread(target=_move, name="bei-huge-pages", daemon=True).start()
        except RuntimeError:  # no more threads are allowed
            _passes.release()


def move_to_huge_pages() -> int:
    """Moves each range of private memory whose pages are all in use to a huge page.

    Returns the number of bytes that are in huge pages then, with those that were already: 0 if the system has none,
    denies them, or is older than Linux 6.1. Raises OSError if the system does not list the memory of the process.
    """
    size, moved = _huge_page_size(), 0
    for address in _full_ranges(size) if size else ():
        started = time.perf_counter()
        moved += size * _is_moved(address, size)
        time.sleep(_PAUSES * (time.perf_counter() - started))
    return moved


def _is_moved(address: int, size: int) -> bool:
    """Moves a range to a huge page, unless it is in one already. Returns whether it is in one then."""
    return not ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _COLLAPSE)


def _move() -> None:
    try:
        with _one_at_a_time:
            started = time.perf_counter()
            moved = move_to_huge_pages()
        log.debug("%d MB of memory are in huge pages, after %.1f s", moved >> 20, time.perf_counter() - started)
    except OSError:
        log.debug("no memory was moved to huge pages", exc_info=True)
    finally:
        _passes.release()


def _huge_page_size() -> int:
    """Bytes of a huge page; 0 if the system has none, denies them, or has very large ones only."""
    with suppress(OSError, ValueError):
        size = int((_SYSTEM / "hpage_pmd_size").read_text())
        files = [_SYSTEM / "enabled", _SYSTEM / f"hugepages-{size >> 10}kB" / "enabled"]
        if size <= _MAX_SIZE and not any("[never]" in file.read_text() for file in files if file.exists()):
            return size
    return 0


def _full_ranges(size: int) -> Iterator[int]:
    """Addresses of ranges of `size` bytes, aligned to it, of private memory that this process alone has all in use."""
    num_pages, step = size // mmap.PAGESIZE, _RANGES_AT_ONCE * size
    with _PAGES.open("rb", buffering=0) as entries:
        for memory in filter(lambda each: each.is_private, ranges()):
            start, end = -(-memory.start // size) * size, memory.end // size * size
            for first in range(start, end, step):
                entries.seek(first // mmap.PAGESIZE * 8)
                content = entries.read((min(first + step, end) - first) // mmap.PAGESIZE * 8)
                pages = np.frombuffer(content, np.uint64)[: len(content) // 8 // num_pages * num_pages]
                is_full = (pages.reshape(-1, num_pages) & _OWN == _OWN).all(axis=1)
                yield from (first + int(index) * size for index in np.flatnonzero(is_full))
