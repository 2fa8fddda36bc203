"""What a server does so that freed memory returns to the operating system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A large block is freed, so glibc would take the next one from a heap. Prints how many blocks are outside the heaps.
SCRIPT = """
import ctypes, sys
from bei_core.http.memory import limit_heaps

class Info(ctypes.Structure):  # mallinfo(3)
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallinfo.restype = Info
if sys.argv[1] == "limited":
    limit_heaps()
libc.free(libc.malloc(16 << 20))
before = libc.mallinfo().hblks
libc.malloc(4 << 20)
print(libc.mallinfo().hblks - before)
"""


@pytest.mark.parametrize(
    ("limits", "environment", "num_outside"),
    [
        ("limited", {}, 1),
        ("default", {}, 0),
        ("limited", {"MALLOC_MMAP_THRESHOLD_": str(8 << 20)}, 0),  # set by the user
    ],
)
def test_large_blocks_are_outside_the_heaps(limits: str, environment: dict[str, str], num_outside: int) -> None:
    command = [sys.executable, "-c", SCRIPT, limits]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == num_outside
