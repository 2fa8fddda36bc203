"""Freed memory is returned after a large request, and as long as other requests use it again."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys

import pytest

from bei_core.http import memory
from bei_core.http.limits import LARGE_BYTES, LEASE, BodyLease, mark_large
from bei_core.http.memory import open_budget
from tests.fakes import SAFETY_S

# A freed block of 30 MB raises the limits of glibc. Then the heap of a thread grows by 24 MB, which are freed again.
THREAD = """
import ctypes, threading
from bei_core.http.memory import MemoryReturner

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def work():
    blocks = [b"x" * 200_000 for _ in range(120)]
    blocks.clear()

b"x" * int("30_000_000")
MemoryReturner(lambda: False)
before = resident()
thread = threading.Thread(target=work)
thread.start()
thread.join()
ctypes.CDLL(None).malloc_trim(0)
print(resident() - before)
"""

# Two blocks of 12 MB, between others that stay, after one that raises the limits of glibc.
BLOCKS = """
from bei_core.http.memory import limit_heaps

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

b"x" * int("30_000_000")
limit_heaps(4 << 20)
before = resident()
blocks = [b"x" * size for _ in range(2) for size in map(int, ("12_000_000", "100_000"))]
del blocks[::2]
print(resident() - before)
"""


class FakeC:
    """The C library, with the number of times that it returned memory."""

    num_calls = 0

    def malloc_trim(self, padding: int) -> int:
        """Does nothing; returns what the C library does if it has returned memory."""
        assert padding == 0
        self.num_calls += 1
        return 1

    def mallopt(self, parameter: int, value: int) -> int:
        """Does nothing; returns what the C library does if it has set a parameter."""
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeC:
    library = FakeC()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(memory, "_DELAY_S", 0.01)
    return library


async def wait_for_calls(library: FakeC, count: int) -> None:
    async with asyncio.timeout(SAFETY_S):
        while library.num_calls < count:
            await asyncio.sleep(0.001)


def test_memory_is_returned_until_no_request_is_in_progress(library: FakeC) -> None:
    async def scenario() -> None:
        budget = open_budget(10 * LARGE_BYTES)
        large, small = BodyLease(budget, lambda: None), BodyLease(budget, lambda: None)
        large.grow(LARGE_BYTES + 1)
        small.grow(1)
        large.release()
        await wait_for_calls(library, 3)
        small.release()
        count = library.num_calls
        await wait_for_calls(library, count + 1)
        await asyncio.sleep(0.1)
        assert library.num_calls <= count + 2  # one may have been under way

    asyncio.run(scenario())


def test_small_requests_return_no_memory(library: FakeC) -> None:
    async def scenario() -> None:
        small = BodyLease(open_budget(LARGE_BYTES), lambda: None)
        small.grow(LARGE_BYTES)
        small.release()
        await asyncio.sleep(0.05)

    asyncio.run(scenario())
    assert library.num_calls == 0


def test_a_small_body_with_many_tokens_returns_memory(library: FakeC) -> None:
    async def scenario() -> None:
        lease = BodyLease(open_budget(10 * LARGE_BYTES), lambda: None)
        lease.grow(1)
        mark_large({"extensions": {LEASE: lease}})
        lease.release()
        await wait_for_calls(library, 1)

    asyncio.run(scenario())


def test_the_end_of_the_heap_of_a_thread_is_returned() -> None:
    program = subprocess.run([sys.executable, "-c", THREAD], capture_output=True, text=True, check=True)
    assert int(program.stdout) < 4_000_000


def test_a_large_block_between_others_is_returned() -> None:
    program = subprocess.run([sys.executable, "-c", BLOCKS], capture_output=True, text=True, check=True)
    assert int(program.stdout) < 4_000_000
