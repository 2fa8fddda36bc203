"""Engines in the cache: published complete, built once, evicted by last use and never while in use."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bei_core.engines.cache import EngineCache, EngineRecords, EngineRef, publish_engine
from bei_core.engines.manifest import MANIFEST, Manifest, is_engine, read_manifest, seal, verify
from bei_core.errors import DiskError
from bei_core.storage.locks import is_local
from tests.fakes import SAFETY_S

A, B, C = ("a" * 32, "b" * 32, "c" * 32)
SIZE = 1000


def make(artifact: str, content: bytes = b"x" * SIZE) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "model.bin").write_bytes(content)
        seal(folder, Manifest(engine="fake", precision="f32", source="s", revision="0", artifact=artifact))

    return fill


def refuse(folder: Path) -> None:
    raise AssertionError("this engine is there already")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name not in {".used", ".locks", ".requests"}}


@pytest.fixture(params=[True, False], ids=["a disk", "a network volume"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", local=request.param)


@pytest.fixture
def disk(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", local=True)


def put(engines: EngineCache, *artifacts: str) -> None:
    """Engines that are not in use; each was last used a second after the previous one, long ago."""
    for number, artifact in enumerate(artifacts):
        engines.obtain(artifact, make(artifact)).release()
        os.utime(engines.root / ".used" / artifact, (1e9 + number, 1e9 + number))


# --- Publishing


def test_an_engine_is_made_once_and_found_again(engines: EngineCache) -> None:
    lease = engines.obtain(A, make(A))
    assert lease.folder == engines.folder(A)
    verify(lease.folder)
    lease.release()
    engines.obtain(A, refuse).release()
    assert names(engines.root) == {A}


def test_a_reader_sees_nothing_until_all_is_there(engines: EngineCache) -> None:
    def look(folder: Path) -> None:
        make(A)(folder)
        assert is_engine(folder)
        assert not engines.folder(A).exists()

    engines.obtain(A, look).release()
    assert is_engine(engines.folder(A))


@pytest.mark.parametrize("fault", [RuntimeError("no memory"), KeyboardInterrupt()], ids=["an error", "an interrupt"])
def test_a_failed_build_leaves_nothing_behind_and_can_be_tried_again(
    engines: EngineCache, fault: BaseException
) -> None:
    def fail(folder: Path) -> None:
        make(A)(folder)
        raise fault

    with pytest.raises(type(fault)):
        engines.obtain(A, fail)
    assert not names(engines.root)
    engines.obtain(A, make(A)).release()
    assert names(engines.root) == {A}


def test_of_many_on_one_disk_one_builds(disk: EngineCache) -> None:
    builds, got = [], []
    together = threading.Barrier(8, timeout=SAFETY_S)

    def build(folder: Path) -> None:
        builds.append(folder)
        make(A)(folder)

    def ask() -> None:
        together.wait()
        lease = EngineCache(disk.root, local=True).obtain(A, build)
        got.append(verify(lease.folder).artifact)
        lease.release()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_S)
    assert got == [A] * 8
    assert len(builds) == 1


def test_of_two_on_a_network_volume_the_later_adopts_the_earlier_ones(tmp_path: Path) -> None:
    engines = EngineCache(tmp_path, local=False)

    def late(folder: Path) -> None:
        engines.obtain(A, make(A, b"earlier")).release()  # meanwhile, on another machine
        make(A, b"later")(folder)

    lease = engines.obtain(A, late)
    assert (lease.folder / "model.bin").read_bytes() == b"earlier"
    lease.release()
    assert names(tmp_path) == {A}


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "thesis.txt").write_text("the only copy")
    with pytest.raises(OSError, match="engine"):
        publish_engine(tmp_path / "engine", make(A))
    assert names(tmp_path) == {"engine"}
    assert names(tmp_path / "engine") == {"thesis.txt"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    publish_engine(tmp_path / "engine", make(A))
    verify(tmp_path / "engine")


def test_the_next_builder_of_an_engine_removes_the_staging_folder_of_killed_ones(disk: EngineCache) -> None:
    put(disk, B)
    for leftover in (f".tmp-{A}-killed", f".tmp-{B}-killed"):
        (disk.root / leftover).mkdir()
        (disk.root / leftover / "model.bin").write_bytes(b"half")
    used = disk.lease(B)
    disk.obtain(A, make(A)).release()
    assert names(disk.root) == {A, B, f".tmp-{B}-killed"}, "B's builder may be alive"
    used.release()


def test_a_process_that_gives_up_waiting_for_a_builder_leaves_its_staging_folder(
    disk: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineRecords, "lock_timeout_s", 0.0)
    begun, go_on = threading.Event(), threading.Event()
    ended: list[object] = []

    def build_slowly(folder: Path) -> None:
        begun.set()
        go_on.wait(SAFETY_S)
        make(A)(folder)

    def first() -> None:
        try:
            disk.obtain(A, build_slowly).release()
            ended.append("well")
        except DiskError as fault:
            ended.append(fault)

    def build(folder: Path) -> None:
        go_on.set()
        make(A)(folder)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(SAFETY_S)
    EngineCache(disk.root, local=True).obtain(A, build).release()
    thread.join(SAFETY_S)
    assert ended == ["well"]
    assert names(disk.root) == {A}


# --- Refs


def test_a_ref_gives_its_engine_while_that_is_there(engines: EngineCache) -> None:
    assert engines.find_by_ref("k", "owner/name") is None
    engines.set_ref("k", EngineRef(A, "0" * 40).encode())
    assert engines.find_by_ref("k", "owner/name") is None, "its engine is not there"
    engines.obtain(A, make(A)).release()
    lease = engines.find_by_ref("k", "owner/name")
    assert lease is not None
    assert lease.folder == engines.folder(A)
    lease.release()
    (engines.root / ".requests" / "k").write_bytes(b'{"artifact"')
    assert engines.find_by_ref("k", "owner/name") is None, "a half-written ref gives nothing"
    engines.set_ref("k", EngineRef("../elsewhere", "0" * 40).encode())
    assert engines.find_by_ref("k", "owner/name") is None, "anything but an address gives nothing"


# --- Damage


def test_a_damaged_engine_is_quarantined_once_and_built_again(engines: EngineCache) -> None:
    put(engines, A)
    (engines.folder(A) / "model.bin").write_bytes(b"y" * SIZE)
    engines.quarantine_damaged(A)
    engines.quarantine_damaged(A)
    assert len(names(engines.root)) == 1
    assert not is_engine(engines.folder(A))
    engines.obtain(A, make(A)).release()
    verify(engines.folder(A))


def test_an_engine_that_another_process_has_built_again_is_not_quarantined(engines: EngineCache) -> None:
    put(engines, A)
    engines.quarantine_damaged(A)
    assert names(engines.root) == {A}
    verify(engines.folder(A))


def test_an_engine_that_has_lost_its_manifest_is_built_again(engines: EngineCache) -> None:
    put(engines, A)
    (engines.folder(A) / MANIFEST).unlink()
    engines.obtain(A, make(A)).release()
    verify(engines.folder(A))


# --- Eviction


def test_entries_are_listed_by_age_with_their_size(engines: EngineCache) -> None:
    put(engines, B, A)
    entries = engines.entries()
    assert [entry.folder.name for entry in entries] == [B, A]
    assert all(read_manifest(entry.folder).num_bytes == SIZE < entry.num_bytes for entry in entries)
    assert [entry.in_use for entry in entries] == [False, False]
    assert EngineCache(engines.root / "nowhere").entries() == []


def test_the_least_recently_used_are_evicted_until_the_rest_fits(engines: EngineCache) -> None:
    put(engines, A, B, C)
    each = engines.entries()[0].num_bytes
    assert not engines.evict(3 * each)
    assert [entry.folder.name for entry in engines.evict(2 * each)] == [A]
    assert names(engines.root) == {B, C}
    assert [entry.folder.name for entry in engines.evict(0)] == [B, C]
    assert not names(engines.root)


def test_an_engine_in_use_stays(engines: EngineCache) -> None:
    put(engines, A, B)
    lease = engines.obtain(A, refuse)
    assert [entry.in_use for entry in engines.entries()] == [False, True]
    assert [entry.folder.name for entry in engines.evict(0)] == [B]
    lease.release()
    lease.release()
    os.utime(engines.root / ".used" / A, (1e9, 1e9))
    assert [entry.folder.name for entry in engines.evict(0)] == [A]


def test_a_network_volumes_engine_counts_as_used_for_a_day(tmp_path: Path) -> None:
    engines = EngineCache(tmp_path, local=False)
    put(engines, A)
    os.utime(tmp_path / ".used" / A, (time.time() - 23 * 3600,) * 2)
    assert not engines.evict(0)
    os.utime(tmp_path / ".used" / A, (time.time() - 25 * 3600,) * 2)
    assert engines.evict(0)


def test_a_new_engine_evicts_older_ones(tmp_path: Path) -> None:
    engines = EngineCache(tmp_path, local=True, max_bytes=3 * SIZE)
    put(engines, A, B)
    assert names(tmp_path) == {A, B}
    engines.obtain(C, make(C)).release()
    assert C in names(tmp_path)
    assert A not in names(tmp_path)


def test_leftovers_are_evicted_and_other_folders_stay(disk: EngineCache) -> None:
    put(disk, A)
    lease = disk.lease(B)  # its builder is alive
    for name in (f".tmp-{A}-1", f".bad-{A}-1", f".tmp-{B}-1", "my-notes"):
        (disk.root / name).mkdir()
        (disk.root / name / "file").write_text("x")
    assert [entry.folder.name for entry in disk.evict()] == [f".tmp-{A}-1"], (
        "a quarantined engine stays for a day, for examination"
    )
    os.utime(disk.root / f".bad-{A}-1", (time.time() - 25 * 3600,) * 2)
    (disk.root / f".tmp-{A}-1").mkdir()
    assert {entry.folder.name for entry in disk.evict()} == {f".tmp-{A}-1", f".bad-{A}-1"}
    assert names(disk.root) == {A, f".tmp-{B}-1", "my-notes"}
    lease.release()


def test_a_staging_folder_that_is_published_while_the_store_is_listed_is_no_error(
    disk: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(disk, A)
    staging = disk.root / f".tmp-{B}-1"
    staging.mkdir()
    make(B)(staging)
    real = EngineRecords.name_of

    def publish_meanwhile(records: EngineRecords, folder: str) -> str | None:
        if folder == staging.name and staging.exists():
            staging.rename(disk.folder(B))
        return real(records, folder)

    monkeypatch.setattr(EngineRecords, "name_of", publish_meanwhile)
    assert [entry.folder.name for entry in disk.entries()] == [A]
    assert {entry.folder.name for entry in disk.entries()} == {A, B}


def test_of_two_processes_that_evict_at_once_only_one_evicts(
    engines: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engines, A, B)
    listed = engines.entries()
    assert len(engines.evict(0)) == 2
    monkeypatch.setattr(EngineCache, "entries", lambda _: listed)
    assert engines.evict(0) == []
    assert not names(engines.root)


@pytest.fixture(params=[errno.EROFS, errno.EACCES], ids=["a read-only disk", "another user's"])
def read_only(disk: EngineCache, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> EngineCache:
    """A cache with the engine A that refuses every write, also by root."""
    put(disk, A)
    disk.set_ref("k", EngineRef(A, "0" * 40).encode())
    real = os.open

    def refuse_writing(path: Any, flags: int, *rest: Any, **options: Any) -> int:  # noqa: ANN401
        if str(path).startswith(str(disk.root)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise refused(path)
        return real(path, flags, *rest, **options)

    def refuse_touching(path: Any, *rest: Any, **options: Any) -> None:  # noqa: ANN401
        raise refused(path)

    def refused(path: object) -> OSError:
        return OSError(request.param, os.strerror(request.param), str(path))

    monkeypatch.setattr("os.open", refuse_writing)
    monkeypatch.setattr("os.utime", refuse_touching)
    return disk


def test_a_read_only_cache_still_serves_its_engines(read_only: EngineCache) -> None:
    with read_only.lock("k"):
        lease = read_only.find_by_ref("k", "owner/name")
    assert lease is not None
    assert lease.folder == read_only.folder(A)
    lease.release()
    read_only.obtain(A, refuse).release()
    assert [entry.folder.name for entry in read_only.entries()] == [A]
    read_only.set_ref("other", EngineRef(A, "0" * 40).encode())
    assert read_only.find_by_ref("other", "owner/name") is None


def test_a_cache_that_cannot_be_written_says_which_setting_helps(read_only: EngineCache) -> None:
    with pytest.raises(
        DiskError, match=r"(Read-only file system|denied); let this user .* or set cache_dir \(BEI_CACHE_DIR\)"
    ):
        read_only.obtain(B, make(B))


def test_what_is_served_from_a_cache_that_cannot_be_written_is_in_use_to_its_owner(
    read_only: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = read_only.lease(A)
    monkeypatch.undo()
    owner = EngineCache(read_only.root, local=True)
    assert owner.evict(0) == []
    lease.release()
    assert [entry.folder.name for entry in owner.evict(0)] == [A]


# --- File systems


def test_disks_and_network_volumes_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path}/nfs nfs4 rw 0 0\nnone {tmp_path}/nfs/own tmpfs rw 0 0\n"
    (tmp_path / "nfs" / "own").mkdir(parents=True)
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *_: table if str(path) == "/proc/mounts" else real(path))
    assert is_local(tmp_path)
    assert is_local(tmp_path / "later" / "made")
    assert not is_local(tmp_path / "nfs" / "store")
    assert is_local(tmp_path / "nfs" / "own" / "store")
