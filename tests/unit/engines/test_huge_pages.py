"""Memory in huge pages: ranges that are all in use are moved, others are not, and no content changes."""

from __future__ import annotations

import ctypes
import mmap
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.openvino import compiled, huge_pages
from bei_core.engines.openvino.huge_pages import move_later, move_to_huge_pages
from bei_core.models.spec import read_spec
from bei_core.tasks import Tokens
from tests.golden.cases import CASES
from tests.golden.engines import built

HUGE = 2 << 20
PAGES = HUGE // mmap.PAGESIZE

Memory = npt.NDArray[np.uint8]


def memory_of(flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) -> Memory:
    """Memory of 8 huge pages, aligned to them, of which nothing is in use; [range, page, byte].

    No system gives it huge pages by itself.
    """
    mapped = np.frombuffer(mmap.mmap(-1, 9 * HUGE, flags), np.uint8)
    start = -mapped.ctypes.data % HUGE
    memory = mapped[start : start + 8 * HUGE].reshape(8, PAGES, -1)
    advise(memory, mmap.MADV_NOHUGEPAGE)
    return memory


def advise(memory: Memory, advice: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), advice)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a system that gives huge pages of 2 MB to those that ask."""
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "hpage_pmd_size").write_text(f"{HUGE}\n")
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    return tmp_path


def moved(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ranges of `memory` that are moved, by a system that moves all."""
    addresses = set[int]()

    def move(address: int, _size: int) -> bool:
        addresses.add(address)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(huge_pages, "_is_moved", move)
        move_to_huge_pages()
    places = ((address - memory.ctypes.data) / HUGE for address in sorted(addresses))
    return [int(place) for place in places if 0 <= place < len(memory) and place.is_integer()]


def test_only_ranges_that_are_all_in_use_are_moved(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of()
    assert moved(memory, monkeypatch) == []
    memory[0], memory[1:7, 1:], memory[7] = 1, 1, 1
    assert moved(memory, monkeypatch) == [0, 7]
    memory[2:4, 0, 5] = 1
    assert moved(memory, monkeypatch) == [0, 2, 3, 7]


def test_large_memory_is_looked_at_in_pieces(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_RANGES_AT_ONCE", 3)
    memory = memory_of()
    memory[:] = 1
    assert moved(memory, monkeypatch) == list(range(8))


def test_memory_that_was_only_read_is_not_moved(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of()
    assert not memory.any()  # every page is the system's page of zeros
    assert moved(memory, monkeypatch) == []


def test_shared_memory_is_not_moved(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    memory[:] = 1
    assert moved(memory, monkeypatch) == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        pytest.param("enabled", "always madvise [never]\n", id="denied"),
        pytest.param("hugepages-2048kB/enabled", "always inherit madvise [never]\n", id="denied-for-this-size"),
        pytest.param("hpage_pmd_size", f"{512 << 20}\n", id="too-large"),
        pytest.param("hpage_pmd_size", "\n", id="unknown"),
    ],
)
def test_nothing_is_moved_where_huge_pages_are_denied_or_too_large(
    file: str, content: str, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = memory_of()
    memory[:] = 1
    assert moved(memory, monkeypatch) != []
    (system / file).parent.mkdir(exist_ok=True)
    (system / file).write_text(content)
    assert moved(memory, monkeypatch) == []
    assert move_to_huge_pages() == 0


def test_nothing_is_moved_without_such_a_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path / "none")
    assert move_to_huge_pages() == 0


def test_a_system_that_does_not_list_memory_is_no_failure(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huge_pages, "_PAGES", tmp_path / "none")
    with pytest.raises(OSError, match="none"):
        move_to_huge_pages()
    with caplog.at_level("DEBUG"):
        for _ in range(3):  # the place of one that failed is free again
            move_later()
            join()
    assert [record.message for record in caplog.records].count("no memory was moved to huge pages") == 3


def test_at_most_one_pass_waits_for_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    join()
    started, go_on, num_passes = threading.Event(), threading.Event(), list[int]()

    def run() -> int:
        num_passes.append(1)
        started.set()
        go_on.wait()
        return 0

    monkeypatch.setattr(huge_pages, "move_to_huge_pages", run)
    move_later()
    started.wait()
    for _ in range(5):
        move_later()
    go_on.set()
    join()
    assert len(num_passes) == 2


def test_content_stays_and_what_is_not_in_use_is_not_filled() -> None:
    memory = memory_of()
    memory[:4] = np.random.default_rng(0).integers(0, 255, memory[:4].shape, np.uint8)
    memory[4:, ::2] = 1
    advise(memory, mmap.MADV_HUGEPAGE)
    content = memory[:4].copy()
    num_bytes = move_to_huge_pages()
    np.testing.assert_array_equal(memory[:4], content)
    assert num_in_memory(memory[:4]) == 4 * PAGES
    assert num_in_memory(memory[4:]) == 2 * PAGES
    is_known = ctypes.CDLL(None).madvise(None, ctypes.c_size_t(0), 25) == 0
    assert num_bytes % HUGE == 0
    assert (num_bytes > 0) == (is_known and huge_pages._huge_page_size() > 0)


def num_in_memory(memory: Memory) -> int:
    """How many pages of `memory` are in memory."""
    with Path("/proc/self/pagemap").open("rb") as entries:
        entries.seek(memory.ctypes.data // mmap.PAGESIZE * 8)
        return int((np.frombuffer(entries.read(memory.nbytes // mmap.PAGESIZE * 8), np.uint64) >> 63).sum())


def join() -> None:
    """Waits for all passes."""
    for thread in threading.enumerate():
        if thread.name == "bei-huge-pages":
            thread.join()


def test_an_engine_in_use_moves_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
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
