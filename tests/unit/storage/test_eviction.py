"""Eviction: leftovers, then checkpoints, then engines of any version, by last use; nothing that is in use."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from pathlib import Path

import pytest

from bei_core.checkpoint import lease_checkpoint
from bei_core.checkpoint.cache import SOURCE, CheckpointRecords, SourceCache
from bei_core.engines import build as build_module
from bei_core.engines import cache as engine_cache
from bei_core.engines import provider
from bei_core.engines.cache import EngineCache, publish_engine
from bei_core.engines.manifest import MANIFEST, SCHEMA
from bei_core.errors import DiskError
from bei_core.storage import cache as cache_module
from bei_core.storage.cache import Entry
from tests.unit.engines.test_cache import SIZE, A, B, make, names
from tests.unit.engines.test_provider import World, only_engine, start, world

__all__ = ["world"]

URL = "https://host/m.tar"
REVISIONS = ["1" * 64, "2" * 64, "3" * 64]


@pytest.fixture(params=[True, False], ids=["a disk", "a network volume"])
def engines(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """An empty cache with its folder of checkpoints."""
    monkeypatch.setattr(cache_module, "is_local", lambda path: request.param)
    return EngineCache(tmp_path / "engines", checkpoints=tmp_path / "checkpoints", local=request.param)


def put(engines: EngineCache, artifact: str, used_at: float) -> None:
    engines.obtain(artifact, make(artifact)).release()
    os.utime(engines.root / ".used" / artifact, (used_at, used_at))


def put_foreign(engines: EngineCache, artifact: str, used_at: float) -> None:
    """An engine of another version of BEI: this version can read only the schema of its manifest."""
    put(engines, artifact, used_at)
    (engines.folder(artifact) / MANIFEST).write_text(json.dumps({"schema": 1, "files": ["model.bin"]}))


def fetch(root: Path, revision: str, used_at: float, source: str = URL) -> Path:
    """A checkpoint of SIZE bytes that was fetched, and last used at a time."""
    cache = SourceCache(root, source)
    (cache.root / "staging").mkdir(parents=True)
    (cache.root / "staging" / "model.safetensors").write_bytes(bytes(SIZE))
    folder = cache.seal(cache.root / "staging", revision)
    os.utime(folder, (used_at, used_at))
    return folder


def removed(entries: list[Entry]) -> list[str]:
    return [entry.folder.name for entry in entries]


# --- Engines of another version


def test_an_engine_of_another_version_is_no_leftover(engines: EngineCache) -> None:
    put_foreign(engines, A, 1e9)
    assert [entry.record.kind for entry in engines.entries()] == ["foreign"]
    assert engines.evict() == []
    assert names(engines.root) == {A}


@pytest.mark.parametrize("older", ["foreign", "ours"])
def test_an_engine_of_another_version_is_evicted_by_age(engines: EngineCache, older: str) -> None:
    put_foreign(engines, A, 1e9 if older == "foreign" else 2e9 - 1e9 + 5)
    put(engines, B, 1e9 + 1)
    largest = max(entry.num_bytes for entry in engines.entries())
    assert removed(engines.evict(largest)) == [A if older == "foreign" else B]


def test_an_engine_of_another_version_stays_while_that_version_has_it_open(engines: EngineCache) -> None:
    put_foreign(engines, A, 1e9)
    lease = engines.lease(A)
    assert engines.evict(0) == []
    lease.release()
    os.utime(engines.root / ".used" / A, (1e9, 1e9))
    assert removed(engines.evict(0)) == [A]


def test_an_engine_that_this_user_may_not_read_is_no_leftover(
    engines: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engines, A, 1e9)

    def refuse(folder: Path) -> None:
        raise DiskError(f"{folder}: Permission denied")

    monkeypatch.setattr(engine_cache, "read_manifest", refuse)
    assert [entry.record.kind for entry in engines.entries()] == ["foreign"]
    assert engines.evict() == []


def test_damaged_engines_and_those_without_a_manifest_are_evicted_at_once(engines: EngineCache) -> None:
    for artifact in (A, B):
        put(engines, artifact, 1e9)
    (engines.folder(A) / MANIFEST).write_text("{")
    (engines.folder(B) / MANIFEST).unlink()
    assert [entry.record.kind for entry in engines.entries()] == ["damaged", "damaged"]
    assert sorted(removed(engines.evict())) == [A, B]


def test_replicas_of_two_versions_have_answers_of_their_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    start(world.settings())
    monkeypatch.setattr(build_module, "SCHEMA", SCHEMA + 1)
    start(world.settings())
    assert len(world.builds) == 2
    engines = EngineCache.of(world.settings())
    assert [entry.record.kind for entry in engines.entries()] == ["engine", "engine"], "none was quarantined"


# --- Leftovers


def test_a_quarantined_engine_is_evicted_while_the_engine_in_its_place_is_used(engines: EngineCache) -> None:
    put(engines, A, 1e9)
    put(engines, B, 1e9 + 1)
    (engines.folder(A) / "model.bin").write_bytes(bytes(SIZE))
    os.utime(engines.folder(A), (1e9, 1e9))
    engines.quarantine_damaged(A)
    lease = engines.obtain(A, make(A))
    fits = sum(entry.num_bytes for entry in engines.entries() if entry.record.kind == "engine")
    assert engines.evict(fits) == [], "it drives no engine out"
    (left,) = names(engines.root) - {A, B}  # for a day, for examination
    os.utime(engines.root / left, (time.time() - 25 * 3600,) * 2)
    engines.evict()
    assert names(engines.root) == {A, B}
    lease.release()


def test_a_killed_builders_staging_folder_on_a_network_volume_goes_by_its_own_age(tmp_path: Path) -> None:
    engines = EngineCache(tmp_path, local=False)
    lease = engines.obtain(A, make(A))
    for name, hours in (("alive", 23), ("killed", 25)):
        (tmp_path / f".tmp-{A}-{name}").mkdir()
        os.utime(tmp_path / f".tmp-{A}-{name}", (time.time() - hours * 3600,) * 2)
    assert [entry.folder.name for entry in engines.evict()] == [f".tmp-{A}-killed"]
    lease.release()


# --- Use


def test_a_listing_does_not_look_like_use(
    engines: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engines, A, 1e9)
    fetch(tmp_path / "checkpoints", REVISIONS[0], 1e9)
    real = cache_module._size
    seen: list[bool] = []

    def measure(folder: Path) -> int:
        monkeypatch.setattr(cache_module, "_size", real)
        seen.extend(entry.in_use for entry in (*engines.entries(), *engines.checkpoint_entries()))
        return real(folder)

    for ask in (engines.entries, engines.checkpoint_entries):
        monkeypatch.setattr(cache_module, "_size", measure)
        ask()
    assert seen == [False] * 4


def test_a_disk_without_locks_is_a_disk_error(engines: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    put(engines, A, 1e9)

    def refuse(entry: Entry) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache_module, "remove", refuse)
    with pytest.raises(DiskError, match="No locks available"):
        engines.evict(0)


def test_an_engine_folder_that_is_built_inside_the_cache_is_no_entry(engines: EngineCache) -> None:
    def build(folder: Path) -> None:
        assert engines.evict(0) == []
        make(A)(folder)

    publish_engine(engines.root / "my-engine", build)
    assert names(engines.root) == {"my-engine"}


# --- Checkpoints


def test_checkpoints_are_evicted_before_engines_the_least_recently_used_first(
    engines: EngineCache, tmp_path: Path
) -> None:
    put(engines, A, 1e9)
    for number in (1, 0, 2):
        fetch(tmp_path / "checkpoints", REVISIONS[number], 1e9 + 10 * number)
    entries = engines.checkpoint_entries()
    assert [entry.folder.name for entry in entries] == REVISIONS
    assert {(entry.record.kind, entry.in_use) for entry in entries} == {("checkpoint", False)}
    assert [entry.record.source for entry in entries] == [f"{URL}@{revision[:12]}" for revision in REVISIONS]
    total = sum(entry.num_bytes for entry in (*entries, *engines.entries()))
    assert engines.evict(total) == []
    assert engines.evict() == [], "without a cap they stay"
    assert removed(engines.evict(total - 1)) == REVISIONS[:1]
    assert removed(engines.evict(0)) == [*REVISIONS[1:], A]
    assert engines.checkpoint_entries() == []


def test_a_checkpoint_that_is_used_again_is_evicted_later(engines: EngineCache, tmp_path: Path) -> None:
    for revision in REVISIONS[:2]:
        fetch(tmp_path / "checkpoints", revision, 1e9)
    assert SourceCache(tmp_path / "checkpoints", URL).find(REVISIONS[0])
    assert [entry.folder.name for entry in engines.checkpoint_entries()] == [REVISIONS[1], REVISIONS[0]]


def test_a_checkpoint_in_use_stays_and_evicts_no_engine(engines: EngineCache, tmp_path: Path) -> None:
    put(engines, A, 1e9)
    (engine,) = engines.entries()
    other = fetch(tmp_path / "checkpoints", REVISIONS[0], 1e9, "s3://bucket/m")
    with lease_checkpoint(URL, tmp_path / "checkpoints"):
        folder = fetch(tmp_path / "checkpoints", REVISIONS[1], 1e9)
        assert [entry.in_use for entry in engines.checkpoint_entries() if entry.folder == folder] == [True]
        assert removed(engines.evict(engine.num_bytes)) == [other.name]
        assert removed(engines.evict(0)) == [A]
        assert (folder / SOURCE).is_file()


def test_a_running_fetch_stays_and_an_abandoned_one_is_evicted(
    engines: EngineCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = SourceCache(tmp_path / "checkpoints", URL)
    young, old = source.partial(REVISIONS[0]), source.partial(REVISIONS[1])
    for folder in (young, old, source.root / ".bad-1", source.root / ".tmp-1", source.root / ".refs"):
        folder.mkdir(parents=True)
    (young / "model.safetensors.part").write_bytes(bytes(SIZE))
    os.utime(old, (1e9, 1e9))
    with lease_checkpoint(URL, tmp_path / "checkpoints"):
        assert engines.evict(0) == []
    os.utime(source.root / ".used", (1e9, 1e9))
    assert sorted(removed(engines.evict())) == sorted([old.name, ".bad-1", ".tmp-1"])
    assert [line.partition(" (")[0] for line in caplog.messages if "evicted" in line][:1] == [f"evicted leftover {old}"]
    assert removed(engines.evict(0)) == [young.name], "it could have been resumed"
    assert (source.root / ".refs").is_dir()


def test_of_two_processes_that_find_a_checkpoint_damaged_each_fetches_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(tmp_path, REVISIONS[0], 1e9)

    def found_by_another(records: CheckpointRecords, folder: Path) -> str:
        folder.rename(tmp_path / "elsewhere")
        return "damaged"

    monkeypatch.setattr(CheckpointRecords, "fault", found_by_another)
    source = SourceCache(tmp_path, URL)
    assert source.find(folder.name) is None
    source.quarantine(folder.name)
    assert [path.name for path in source.root.iterdir() if path.is_dir()] == []


def test_a_checkpoint_on_a_network_volume_counts_as_read_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "is_local", lambda path: False)
    engines = EngineCache(tmp_path / "engines", checkpoints=tmp_path, local=False)
    with lease_checkpoint(URL, tmp_path):
        fetch(tmp_path, REVISIONS[0], 1e9)
    file = SourceCache(tmp_path, URL).root / ".used"
    for hours, expected in ((23, []), (25, REVISIONS[:1])):
        os.utime(file, (time.time() - hours * 3600,) * 2)
        assert removed(engines.evict(0)) == expected


@pytest.mark.parametrize("model_id", ["owner/name", "/srv/model", "file:///srv/model"])
def test_local_folders_and_the_hub_cache_need_no_lease(tmp_path: Path, model_id: str) -> None:
    with lease_checkpoint(model_id, tmp_path / "checkpoints") as done:
        done()
    assert not (tmp_path / "checkpoints").exists()


def test_a_cache_that_cannot_be_written_gives_no_lease(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with lease_checkpoint(URL, tmp_path / "checkpoints") as done:
        done()


# --- A start


def test_a_checkpoint_stays_while_its_engine_is_built_and_is_evicted_for_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "is_local", lambda path: True)
    settings = world.settings(model_id=URL, cache_size_gb=1e-6)
    folder = fetch(settings.cache_dir / "checkpoints", REVISIONS[0], 1e9)
    real = world.plan

    def plan(*arguments: object) -> object:
        assert EngineCache.of(settings).evict(0) == []
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
        provider.EngineProvider(world.settings()).build(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_engine_that_may_not_be_read_is_not_quarantined(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    start(world.settings())

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("bei_core.engines.manifest._entry", refuse)
    with pytest.raises(DiskError, match="Permission denied; let this user read"):
        start(world.settings(verify="always"))
    only_engine(world.settings())
    assert len(world.builds) == 1


def test_a_start_goes_on_if_nothing_can_be_evicted(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(root: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(root))

    monkeypatch.setattr(engine_cache, "source_caches", refuse)
    start(world.settings())
    assert "eviction failed: cannot read or write" in caplog.text
