"""Memory in huge pages: what is full is moved, what is not stays as small as it is, and nothing changes its content."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.openvino import compiled, huge_pages
from bei_core.engines.openvino.huge_pages import move_to_huge_pages
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import CASES
from tests.golden.engines import built

HUGE = 2 << 20


class Kernel:
    """A C library that notes the advice about memory, and supports MADV_COLLAPSE or does not."""

    def __init__(self, *, collapses: bool) -> None:
        self.collapses = collapses
        self.advice: list[tuple[int, int]] = []  # address, advice
        self.mincore = ctypes.CDLL(None).mincore

    def madvise(self, address: ctypes.c_void_p, size: ctypes.c_size_t, advice: int) -> int:
        assert size.value == HUGE
        self.advice.append((address.value or 0, advice))
        return 0 if self.collapses or advice == 14 else -1


@pytest.fixture
def memory() -> npt.NDArray[np.uint8]:
    """Private memory of 16 MB, of which nothing is in use."""
    return np.frombuffer(mmap.mmap(-1, 8 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a system that gives huge pages of 2 MB to those that ask."""
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "hpage_pmd_size").write_text(f"{HUGE}\n")
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    return tmp_path


def moved(memory: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, *, collapses: bool = True) -> list[int]:
    """What is advised for each aligned range of `memory`, in order: all advice, range by range."""
    kernel = Kernel(collapses=collapses)
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _: kernel)
        move_to_huge_pages()
    start = memory.ctypes.data
    return [advice for address, advice in kernel.advice if start <= address < start + memory.nbytes]


def test_only_full_ranges_are_moved(
    memory: npt.NDArray[np.uint8], system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert moved(memory, monkeypatch) == []
    memory[:: 2 * mmap.PAGESIZE] = 1  # every other page
    assert moved(memory, monkeypatch) == []
    memory[:] = 1
    assert len(moved(memory, monkeypatch)) in {7, 8}  # its first and last range may be shared with a neighbour
    assert set(moved(memory, monkeypatch)) == {25}


def test_an_older_kernel_is_asked_to_move_them_later(
    memory: npt.NDArray[np.uint8], system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory[:] = 1
    advice = moved(memory, monkeypatch, collapses=False)
    assert set(zip(advice[::2], advice[1::2], strict=True)) == {(25, 14)}


@pytest.mark.parametrize("enabled", ["always madvise [never]\n", None], ids=["denied", "no-such-system"])
def test_nothing_is_moved_where_huge_pages_are_denied(
    enabled: str | None, memory: npt.NDArray[np.uint8], system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system / "enabled").write_text(enabled) if enabled else (system / "enabled").unlink()
    memory[:] = 1
    assert moved(memory, monkeypatch) == []
    assert move_to_huge_pages() == 0


def test_nothing_is_moved_where_the_system_does_not_list_memory(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "_PROCESS", tmp_path / "none")
    assert move_to_huge_pages() == 0


def test_a_range_that_is_gone_is_passed_over() -> None:
    gone = mmap.mmap(-1, HUGE)
    address = np.frombuffer(gone, np.uint8).ctypes.data
    gone.close()
    assert huge_pages._pages_in_use(address, HUGE).size == 0


def test_content_stays_and_the_process_does_not_grow(memory: npt.NDArray[np.uint8]) -> None:
    content = np.random.default_rng(0).integers(0, 255, memory.nbytes // 2, np.uint8)
    memory[: len(content)] = content
    memory[len(content) :: 2 * mmap.PAGESIZE] = 1
    before = resident(memory)
    num_bytes = move_to_huge_pages()
    np.testing.assert_array_equal(memory[: len(content)], content)
    assert resident(memory) < before + HUGE  # all ranges of which every other page is in use would be 4 MB
    assert num_bytes % HUGE == 0


def resident(memory: npt.NDArray[np.uint8]) -> int:
    """Bytes of the mapping with `memory` that are in use."""
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]
    for entry in entries:
        start, end = (int(part, 16) for part in entry.split(maxsplit=1)[0].split("-"))
        if start <= memory.ctypes.data < end:
            found = re.search(r"^Rss: +(\d+) kB", entry, re.MULTILINE)
            assert found is not None
            return int(found[1]) << 10
    raise AssertionError("the memory is not mapped")


def test_an_engine_in_use_moves_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(compiled, "move_later", lambda: calls.append(1))
    monkeypatch.setattr(compiled, "_TOKENS_IN_USE", 1000)
    checkpoint = resolve(str(CASES[0].folder))
    engine = built(checkpoint, read_spec(checkpoint), tmp_path / "engine").engine
    batch = Batch.pack([Tokens(np.full(5, 5, np.int32), np.zeros(5, np.int32))] * 100)
    num_calls = []
    for _ in range(21):
        engine.forward(batch)
        num_calls.append(len(calls))
    assert num_calls[0] == 0  # 500 tokens, and those of the warm-up
    assert num_calls[1] == num_calls[17] == 1
    assert num_calls[20] == 2
    engine.close()
