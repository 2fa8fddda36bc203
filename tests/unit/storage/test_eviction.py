"""What goes when the cache is too large: other versions' engines by age, checkpoints before engines, none in use."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from pathlib import Path

import pytest

from bei_core.checkpoint import place as place_module
from bei_core.checkpoint import staying
from bei_core.checkpoint.place import SOURCE, Place
from bei_core.engines import provider as obtain
from bei_core.engines import store as store_module
from bei_core.engines.manifest import MANIFEST, SCHEMA
from bei_core.engines.store import Entry, Store, publish
from bei_core.errors import DiskError
from tests.unit.engines.test_provider import World, only_engine, start, world
from tests.unit.engines.test_store import SIZE, A, B, make, names

__all__ = ["world"]

URL = "https://host/m.tar"
REVISIONS = ["1" * 64, "2" * 64, "3" * 64]


@pytest.fixture(params=[True, False], ids=["a disk", "a network volume"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store with its folder of checkpoints."""
    monkeypatch.setattr(place_module, "is_local", lambda path: request.param)
    return Store(tmp_path / "engines", checkpoints=tmp_path / "checkpoints", local=request.param)


def put(store: Store, artifact: str, used_at: float) -> None:
    store.obtain(artifact, make(artifact)).release()
    os.utime(store.root / ".used" / artifact, (used_at, used_at))


def put_foreign(store: Store, artifact: str, used_at: float) -> None:
    """Another version's engine, of whose manifest this one knows the schema alone."""
    put(store, artifact, used_at)
    (store.folder(artifact) / MANIFEST).write_text(json.dumps({"schema": 1, "files": ["model.bin"]}))


def fetch(root: Path, revision: str, used_at: float, source: str = URL) -> Path:
    """A checkpoint of SIZE bytes that was fetched, and last used at a time."""
    place = Place(root, source)
    (place.folder / "draft").mkdir(parents=True)
    (place.folder / "draft" / "model.safetensors").write_bytes(bytes(SIZE))
    folder = place.publish(place.folder / "draft", revision)
    os.utime(folder, (used_at, used_at))
    return folder


def removed(entries: list[Entry]) -> list[str]:
    return [entry.folder.name for entry in entries]


# --- Engines of another version


def test_another_versions_engine_is_no_leftover(store: Store) -> None:
    put_foreign(store, A, 1e9)
    assert [entry.kind for entry in store.entries()] == ["foreign"]
    assert store.trim() == []
    assert names(store.root) == {A}


@pytest.mark.parametrize("older", ["foreign", "ours"])
def test_another_versions_engine_goes_by_age(store: Store, older: str) -> None:
    put_foreign(store, A, 1e9 if older == "foreign" else 2e9 - 1e9 + 5)
    put(store, B, 1e9 + 1)
    largest = max(entry.num_bytes for entry in store.entries())
    assert removed(store.trim(largest)) == [A if older == "foreign" else B]


def test_another_versions_engine_stays_while_that_version_has_it_open(store: Store) -> None:
    put_foreign(store, A, 1e9)
    held = store.hold(A)
    assert store.trim(0) == []
    held.release()
    os.utime(store.root / ".used" / A, (1e9, 1e9))
    assert removed(store.trim(0)) == [A]


def test_an_engine_that_this_user_may_not_read_is_no_leftover(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, A, 1e9)

    def refuse(folder: Path) -> None:
        raise DiskError(f"{folder}: Permission denied")

    monkeypatch.setattr(store_module, "read_manifest", refuse)
    assert [entry.kind for entry in store.entries()] == ["foreign"]
    assert store.trim() == []


def test_a_damaged_engine_and_one_without_a_manifest_go_at_once(store: Store) -> None:
    for artifact in (A, B):
        put(store, artifact, 1e9)
    (store.folder(A) / MANIFEST).write_text("{")
    (store.folder(B) / MANIFEST).unlink()
    assert [entry.kind for entry in store.entries()] == ["damaged", "damaged"]
    assert sorted(removed(store.trim())) == [A, B]


def test_replicas_of_two_versions_have_answers_of_their_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    start(world.settings())
    monkeypatch.setattr(obtain, "SCHEMA", SCHEMA + 1)
    start(world.settings())
    assert len(world.builds) == 2
    store = obtain.store_of(world.settings())
    assert [entry.kind for entry in store.entries()] == ["engine", "engine"], "none was set aside"


# --- Leftovers


def test_what_was_set_aside_goes_while_the_engine_in_its_place_is_used(store: Store) -> None:
    put(store, A, 1e9)
    put(store, B, 1e9 + 1)
    (store.folder(A) / "model.bin").write_bytes(bytes(SIZE))
    os.utime(store.folder(A), (1e9, 1e9))
    store.set_aside(store.folder(A))
    held = store.obtain(A, make(A))
    fits = sum(entry.num_bytes for entry in store.entries() if entry.kind == "engine")
    assert store.trim(fits) == [], "it drives no engine out"
    (left,) = names(store.root) - {A, B}  # for a day, to be looked at
    os.utime(store.root / left, (time.time() - 25 * 3600,) * 2)
    store.trim()
    assert names(store.root) == {A, B}
    held.release()


def test_a_killed_builders_draft_on_a_network_volume_goes_by_its_own_age(tmp_path: Path) -> None:
    store = Store(tmp_path, local=False)
    held = store.obtain(A, make(A))
    for name, hours in (("alive", 23), ("killed", 25)):
        (tmp_path / f".tmp-{A}-{name}").mkdir()
        os.utime(tmp_path / f".tmp-{A}-{name}", (time.time() - hours * 3600,) * 2)
    assert [entry.folder.name for entry in store.trim()] == [f".tmp-{A}-killed"]
    held.release()


# --- Who asks, and who uses


def test_a_listing_does_not_look_like_use(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, A, 1e9)
    fetch(tmp_path / "checkpoints", REVISIONS[0], 1e9)
    real = store_module._size
    seen: list[bool] = []

    def measure(folder: Path) -> int:
        monkeypatch.setattr(store_module, "_size", real)
        seen.extend(entry.in_use for entry in (*store.entries(), *store.checkpoints()))
        return real(folder)

    for ask in (store.entries, store.checkpoints):
        monkeypatch.setattr(store_module, "_size", measure)
        ask()
    assert seen == [False] * 4


def test_a_disk_without_locks_is_an_error_of_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, A, 1e9)

    def refuse(entry: Entry) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store_module, "_remove", refuse)
    with pytest.raises(DiskError, match="No locks available"):
        store.trim(0)


def test_an_engine_folder_that_is_built_inside_the_store_is_not_the_stores(store: Store) -> None:
    def build(folder: Path) -> None:
        assert store.trim(0) == []
        make(A)(folder)

    publish(store.root / "my-engine", build)
    assert names(store.root) == {"my-engine"}


# --- Checkpoints


def test_checkpoints_go_before_engines_the_least_recently_used_first(store: Store, tmp_path: Path) -> None:
    put(store, A, 1e9)
    for number in (1, 0, 2):
        fetch(tmp_path / "checkpoints", REVISIONS[number], 1e9 + 10 * number)
    entries = store.checkpoints()
    assert [entry.folder.name for entry in entries] == REVISIONS
    assert {(entry.kind, entry.in_use) for entry in entries} == {("checkpoint", False)}
    assert [entry.what for entry in entries] == [f"{URL}@{revision[:12]}" for revision in REVISIONS]
    total = sum(entry.num_bytes for entry in (*entries, *store.entries()))
    assert store.trim(total) == []
    assert store.trim() == [], "without a cap they stay"
    assert removed(store.trim(total - 1)) == REVISIONS[:1]
    assert removed(store.trim(0)) == [*REVISIONS[1:], A]
    assert store.checkpoints() == []


def test_one_that_is_used_again_goes_later(store: Store, tmp_path: Path) -> None:
    for revision in REVISIONS[:2]:
        fetch(tmp_path / "checkpoints", revision, 1e9)
    assert Place(tmp_path / "checkpoints", URL).find(REVISIONS[0])
    assert [entry.folder.name for entry in store.checkpoints()] == [REVISIONS[1], REVISIONS[0]]


def test_one_that_is_read_stays_and_drives_no_engine_out(store: Store, tmp_path: Path) -> None:
    put(store, A, 1e9)
    (engine,) = store.entries()
    other = fetch(tmp_path / "checkpoints", REVISIONS[0], 1e9, "s3://bucket/m")
    with staying(URL, tmp_path / "checkpoints"):
        folder = fetch(tmp_path / "checkpoints", REVISIONS[1], 1e9)
        assert [entry.in_use for entry in store.checkpoints() if entry.folder == folder] == [True]
        assert removed(store.trim(engine.num_bytes)) == [other.name]
        assert removed(store.trim(0)) == [A]
        assert (folder / SOURCE).is_file()


def test_what_is_being_fetched_stays_and_what_was_given_up_goes(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    place = Place(tmp_path / "checkpoints", URL)
    young, old = place.partial(REVISIONS[0]), place.partial(REVISIONS[1])
    for folder in (young, old, place.folder / ".bad-1", place.folder / ".tmp-1", place.folder / ".refs"):
        folder.mkdir(parents=True)
    (young / "model.safetensors.part").write_bytes(bytes(SIZE))
    os.utime(old, (1e9, 1e9))
    with staying(URL, tmp_path / "checkpoints"):
        assert store.trim(0) == []
    os.utime(place.folder / ".used", (1e9, 1e9))
    assert sorted(removed(store.trim())) == sorted([old.name, ".bad-1", ".tmp-1"])
    assert [line.partition(" (")[0] for line in caplog.messages if "removed" in line][:1] == [f"removed {old}"]
    assert removed(store.trim(0)) == [young.name], "it could have been gone on with"
    assert (place.folder / ".refs").is_dir()


def test_of_two_that_find_one_damaged_each_fetches_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(tmp_path, REVISIONS[0], 1e9)

    def found_by_another(folder: Path) -> str:
        folder.rename(tmp_path / "elsewhere")
        return "damaged"

    monkeypatch.setattr(place_module, "_fault", found_by_another)
    assert Place(tmp_path, URL).find(folder.name) is None


def test_one_on_a_network_volume_counts_as_read_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "is_local", lambda path: False)
    store = Store(tmp_path / "engines", checkpoints=tmp_path, local=False)
    with staying(URL, tmp_path):
        fetch(tmp_path, REVISIONS[0], 1e9)
    mark = Place(tmp_path, URL).folder / ".used"
    for hours, expected in ((23, []), (25, REVISIONS[:1])):
        os.utime(mark, (time.time() - hours * 3600,) * 2)
        assert removed(store.trim(0)) == expected


@pytest.mark.parametrize("model_id", ["owner/name", "/srv/model", "file:///srv/model"])
def test_what_others_look_after_is_not_held(tmp_path: Path, model_id: str) -> None:
    with staying(model_id, tmp_path / "checkpoints") as done:
        done()
    assert not (tmp_path / "checkpoints").exists()


def test_a_cache_that_cannot_be_written_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with staying(URL, tmp_path / "checkpoints") as done:
        done()


# --- A start


def test_a_checkpoint_stays_while_its_engine_is_built_and_makes_room_for_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_module, "is_local", lambda path: True)
    settings = world.settings(model_id=URL, cache_size_gb=1e-6)
    folder = fetch(settings.cache_dir / "checkpoints", REVISIONS[0], 1e9)
    real = world.plan

    def plan(*arguments: object) -> object:
        assert obtain.store_of(settings).trim(0) == []
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(world, "plan", plan)
    start(settings)
    assert not folder.exists()
    only_engine(settings)


def test_a_start_on_a_full_disk_leaves_nothing_and_the_next_one_builds(world: World) -> None:
    world.fails = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskError, match="engines: No space left on device; free some space there"):
        start(world.settings())
    assert not list((world.settings().cache_dir / "engines").glob("*[!.]-*"))
    world.fails = None
    start(world.settings())
    assert len(world.builds) == 2


def test_an_engine_folder_on_a_full_disk_names_its_own_option(world: World, tmp_path: Path) -> None:
    world.fails = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskError, match=r"out: No space left on device; .*or set --output"):
        obtain.Supply(world.settings()).build(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_engine_that_may_not_be_read_is_not_set_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    start(world.settings())

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("bei_core.engines.manifest._entry", refuse)
    with pytest.raises(DiskError, match="Permission denied; let this user read"):
        start(world.settings())
    only_engine(world.settings())
    assert len(world.builds) == 1


def test_a_start_goes_on_where_no_room_can_be_made(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(root: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(root))

    monkeypatch.setattr(store_module, "kept", refuse)
    start(world.settings())
    assert "no room is made: cannot read or write" in caplog.text
