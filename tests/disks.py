"""A full disk, on any machine that runs the tests."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CAPACITY = 256 << 10  # bytes
FULL = "(No space left on device|File too large)"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """The folder, with space for CAPACITY bytes: a file system of its own or, if none may be mounted, as `limited`."""
    folder.mkdir()
    if not _mounts(folder):
        with limited():
            yield folder
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mounts(folder: Path) -> bool:
    """Whether a file system of CAPACITY bytes could be mounted there, which takes root and a mount command."""
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", f"size={CAPACITY}", "tmpfs", str(folder)]
    return mount is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextmanager
def limited() -> Iterator[None]:
    """No file of this process can grow beyond CAPACITY bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CAPACITY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["a small disk", "a limit"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which no file of more than CAPACITY bytes can be written."""
    if request.param == "a small disk":
        with small_disk(tmp_path / "disk") as folder:
            yield folder
        return
    (tmp_path / "disk").mkdir()
    with limited():
        yield tmp_path / "disk"
