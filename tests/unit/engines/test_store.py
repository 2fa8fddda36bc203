"""The store: engines whole or not there, built once, evicted by age and never in use."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bei_core.engines import store as store_module
from bei_core.engines.manifest import MANIFEST, Manifest, is_engine, seal, verify
from bei_core.engines.store import Request, Store, publish
from bei_core.errors import DiskError
from bei_core.storage.marks import is_local
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
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "engines", local=request.param)


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(tmp_path / "engines", local=True)


def put(store: Store, *artifacts: str) -> None:
    """Engines that nobody uses, each last used a second after the one before, long ago."""
    for number, artifact in enumerate(artifacts):
        store.obtain(artifact, make(artifact)).release()
        os.utime(store.root / ".used" / artifact, (1e9 + number, 1e9 + number))


# --- Publishing


def test_an_engine_is_made_once_and_found_again(store: Store) -> None:
    held = store.obtain(A, make(A))
    assert held.folder == store.folder(A)
    verify(held.folder)
    held.release()
    store.obtain(A, refuse).release()
    assert names(store.root) == {A}


def test_a_reader_sees_nothing_until_all_is_there(store: Store) -> None:
    def look(folder: Path) -> None:
        make(A)(folder)
        assert is_engine(folder)
        assert not store.folder(A).exists()

    store.obtain(A, look).release()
    assert is_engine(store.folder(A))


@pytest.mark.parametrize("fault", [RuntimeError("no memory"), KeyboardInterrupt()], ids=["an error", "an interrupt"])
def test_a_failed_build_leaves_nothing_behind_and_can_be_tried_again(store: Store, fault: BaseException) -> None:
    def fail(folder: Path) -> None:
        make(A)(folder)
        raise fault

    with pytest.raises(type(fault)):
        store.obtain(A, fail)
    assert not names(store.root)
    store.obtain(A, make(A)).release()
    assert names(store.root) == {A}


def test_of_many_on_one_disk_one_builds(disk: Store) -> None:
    builds, got = [], []
    together = threading.Barrier(8, timeout=SAFETY_S)

    def build(folder: Path) -> None:
        builds.append(folder)
        make(A)(folder)

    def ask() -> None:
        together.wait()
        held = Store(disk.root, local=True).obtain(A, build)
        got.append(verify(held.folder).artifact)
        held.release()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_S)
    assert got == [A] * 8
    assert len(builds) == 1


def test_of_two_on_a_network_volume_the_later_adopts_the_earlier_ones(tmp_path: Path) -> None:
    store = Store(tmp_path, local=False)

    def late(folder: Path) -> None:
        store.obtain(A, make(A, b"earlier")).release()  # meanwhile, on another machine
        make(A, b"later")(folder)

    held = store.obtain(A, late)
    assert (held.folder / "model.bin").read_bytes() == b"earlier"
    held.release()
    assert names(tmp_path) == {A}


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "thesis.txt").write_text("the only copy")
    with pytest.raises(OSError, match="engine"):
        publish(tmp_path / "engine", make(A))
    assert names(tmp_path) == {"engine"}
    assert names(tmp_path / "engine") == {"thesis.txt"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    publish(tmp_path / "engine", make(A))
    verify(tmp_path / "engine")


def test_what_killed_builders_of_an_engine_left_is_cleared_by_the_next(disk: Store) -> None:
    put(disk, B)
    for leftover in (f".tmp-{A}-killed", f".tmp-{B}-killed"):
        (disk.root / leftover).mkdir()
        (disk.root / leftover / "model.bin").write_bytes(b"half")
    used = disk.hold(B)
    disk.obtain(A, make(A)).release()
    assert names(disk.root) == {A, B, f".tmp-{B}-killed"}, "B's builder may be alive"
    used.release()


def test_who_gives_up_waiting_for_a_builder_spares_its_draft(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_LOCK_TIMEOUT_S", 0.0)
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
    Store(disk.root, local=True).obtain(A, build).release()
    thread.join(SAFETY_S)
    assert ended == ["well"]
    assert names(disk.root) == {A}


# --- What requests were answered with


def test_a_request_is_answered_as_before_while_the_engine_is_there(store: Store) -> None:
    assert store.answered("k") is None
    store.remember("k", Request(A, "owner/name", "0" * 40))
    assert store.answered("k") is None, "its engine is not there"
    store.obtain(A, make(A)).release()
    held = store.answered("k")
    assert held is not None
    assert held.folder == store.folder(A)
    held.release()
    (store.root / ".requests" / "k").write_bytes(b'{"artifact"')
    assert store.answered("k") is None, "what was half-written is no answer"
    store.remember("k", Request("../elsewhere", "owner/name", "0" * 40))
    assert store.answered("k") is None, "what is no address names no folder"


# --- Damage


def test_a_damaged_engine_is_set_aside_once_and_made_again(store: Store) -> None:
    put(store, A)
    (store.folder(A) / "model.bin").write_bytes(b"y" * SIZE)
    store.set_aside(store.folder(A))
    store.set_aside(store.folder(A))
    assert len(names(store.root)) == 1
    assert not is_engine(store.folder(A))
    store.obtain(A, make(A)).release()
    verify(store.folder(A))


def test_one_that_another_process_has_made_again_is_not_set_aside(store: Store) -> None:
    put(store, A)
    store.set_aside(store.folder(A))
    assert names(store.root) == {A}
    verify(store.folder(A))


def test_one_that_has_lost_its_manifest_is_made_again(store: Store) -> None:
    put(store, A)
    (store.folder(A) / MANIFEST).unlink()
    store.obtain(A, make(A)).release()
    verify(store.folder(A))


# --- Eviction


def test_entries_are_listed_by_age_with_their_size(store: Store) -> None:
    put(store, B, A)
    entries = store.entries()
    assert [entry.folder.name for entry in entries] == [B, A]
    assert all(entry.manifest is not None and entry.manifest.num_bytes == SIZE < entry.num_bytes for entry in entries)
    assert [entry.in_use for entry in entries] == [False, False]
    assert Store(store.root / "nowhere").entries() == []


def test_the_least_recently_used_go_until_the_rest_fits(store: Store) -> None:
    put(store, A, B, C)
    each = store.entries()[0].num_bytes
    assert not store.trim(3 * each)
    assert [entry.folder.name for entry in store.trim(2 * each)] == [A]
    assert names(store.root) == {B, C}
    assert [entry.folder.name for entry in store.trim(0)] == [B, C]
    assert not names(store.root)


def test_one_in_use_stays(store: Store) -> None:
    put(store, A, B)
    held = store.obtain(A, refuse)
    assert [entry.in_use for entry in store.entries()] == [False, True]
    assert [entry.folder.name for entry in store.trim(0)] == [B]
    held.release()
    held.release()
    os.utime(store.root / ".used" / A, (1e9, 1e9))
    assert [entry.folder.name for entry in store.trim(0)] == [A]


def test_a_network_volumes_engine_counts_as_used_for_a_day(tmp_path: Path) -> None:
    store = Store(tmp_path, local=False)
    put(store, A)
    os.utime(tmp_path / ".used" / A, (time.time() - 23 * 3600,) * 2)
    assert not store.trim(0)
    os.utime(tmp_path / ".used" / A, (time.time() - 25 * 3600,) * 2)
    assert store.trim(0)


def test_a_new_engine_makes_room_for_itself(tmp_path: Path) -> None:
    store = Store(tmp_path, local=True, max_bytes=3 * SIZE)
    put(store, A, B)
    assert names(tmp_path) == {A, B}
    store.obtain(C, make(C)).release()
    assert C in names(tmp_path)
    assert A not in names(tmp_path)


def test_leftovers_go_and_what_is_not_ours_stays(disk: Store) -> None:
    put(disk, A)
    held = disk.hold(B)  # its builder is alive
    for name in (f".tmp-{A}-1", f".bad-{A}-1", f".tmp-{B}-1", "my-notes"):
        (disk.root / name).mkdir()
        (disk.root / name / "file").write_text("x")
    assert [entry.folder.name for entry in disk.trim()] == [f".tmp-{A}-1"], (
        "what was damaged stays for a day, to be looked at"
    )
    os.utime(disk.root / f".bad-{A}-1", (time.time() - 25 * 3600,) * 2)
    (disk.root / f".tmp-{A}-1").mkdir()
    assert {entry.folder.name for entry in disk.trim()} == {f".tmp-{A}-1", f".bad-{A}-1"}
    assert names(disk.root) == {A, f".tmp-{B}-1", "my-notes"}
    held.release()


def test_a_draft_that_is_published_while_the_store_is_listed_is_no_error(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(disk, A)
    draft = disk.root / f".tmp-{B}-1"
    draft.mkdir()
    make(B)(draft)
    real = store_module._is_leftover

    def publish_meanwhile(folder: Path) -> bool:
        is_leftover = real(folder)
        if is_leftover and draft.exists():
            draft.rename(disk.folder(B))
        return is_leftover

    monkeypatch.setattr(store_module, "_is_leftover", publish_meanwhile)
    assert [entry.folder.name for entry in disk.entries()] == [A]
    assert {entry.folder.name for entry in disk.entries()} == {A, B}


def test_of_two_that_evict_at_once_one_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, A, B)
    listed = store.entries()
    assert len(store.trim(0)) == 2
    monkeypatch.setattr(Store, "entries", lambda _: listed)
    assert store.trim(0) == []
    assert not names(store.root)


@pytest.fixture(params=[errno.EROFS, errno.EACCES], ids=["a read-only disk", "another user's"])
def read_only(disk: Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    """A store with A in it that refuses every write, also root's."""
    put(disk, A)
    disk.remember("k", Request(A, "owner/name", "0" * 40))
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


def test_a_store_that_cannot_be_written_serves_what_it_has(read_only: Store) -> None:
    with read_only.locked("k"):
        held = read_only.answered("k")
    assert held is not None
    assert held.folder == read_only.folder(A)
    held.release()
    read_only.obtain(A, refuse).release()
    assert [entry.folder.name for entry in read_only.entries()] == [A]
    read_only.remember("other", Request(A, "owner/name", "0" * 40))
    assert read_only.answered("other") is None


def test_a_store_that_cannot_be_written_says_which_setting_helps(read_only: Store) -> None:
    with pytest.raises(
        DiskError, match=r"(Read-only file system|denied); let this user .* or set cache_dir \(BEI_CACHE_DIR\)"
    ):
        read_only.obtain(B, make(B))


def test_what_is_served_from_a_store_that_cannot_be_written_is_in_use_to_its_owner(
    read_only: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = read_only.hold(A)
    monkeypatch.undo()
    owner = Store(read_only.root, local=True)
    assert owner.trim(0) == []
    held.release()
    assert [entry.folder.name for entry in owner.trim(0)] == [A]


# --- File systems


def test_a_disk_is_told_from_a_network_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path}/nfs nfs4 rw 0 0\nnone {tmp_path}/nfs/own tmpfs rw 0 0\n"
    (tmp_path / "nfs" / "own").mkdir(parents=True)
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *_: table if str(path) == "/proc/mounts" else real(path))
    assert is_local(tmp_path)
    assert is_local(tmp_path / "later" / "made")
    assert not is_local(tmp_path / "nfs" / "store")
    assert is_local(tmp_path / "nfs" / "own" / "store")
