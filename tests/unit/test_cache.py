"""Engine folders are whole or not there, and what is wrong with one is found before it is used."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bei_core.engines import cache
from bei_core.engines.cache import FileEntry, Manifest
from bei_core.errors import CheckpointError
from tests.fakes import SAFETY_S

MANIFEST = Manifest(
    engine="fake", precision="f32", source="owner/name", revision="0" * 40, runtime={"fake": "1", "cpu": "FP32"}
)
FILES = {"model.blob": b"blob" * 1000, "spec.json": b"{}", "deep/er/tokenizer.json": b"tokens", "empty": b""}


def fill_with(files: dict[str, bytes]) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return fill


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A published engine folder."""
    return cache.publish(tmp_path / "engines" / "one", MANIFEST, fill_with(FILES))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- Publishing


def test_a_published_engine_holds_its_files_and_a_manifest_of_them(engine: Path) -> None:
    manifest = cache.verify(engine)
    assert set(manifest.files) == set(FILES)
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        name: len(content) for name, content in FILES.items()
    }
    assert msgspec.structs.replace(manifest, files={}) == MANIFEST
    assert all((engine / name).read_bytes() == content for name, content in FILES.items())
    assert names(engine.parent) == {"one"}


def test_a_reader_sees_nothing_until_all_is_there(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    seen = []

    def fill(folder: Path) -> None:
        fill_with(FILES)(folder)
        seen.append((target.exists(), cache.is_engine(target), cache.is_engine(folder)))

    cache.publish(target, MANIFEST, fill)
    assert seen == [(False, False, False)]
    assert cache.is_engine(target)


@pytest.mark.parametrize("fault", [RuntimeError("no memory"), KeyboardInterrupt()], ids=["an error", "an interrupt"])
def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, fault: BaseException) -> None:
    def fill(folder: Path) -> None:
        fill_with(FILES)(folder)
        raise fault

    with pytest.raises(type(fault)):
        cache.publish(tmp_path / "engine", MANIFEST, fill)
    assert not names(tmp_path)


def test_of_two_builders_the_later_adopts_the_earlier_ones_engine(tmp_path: Path) -> None:
    target = tmp_path / "engine"

    def fill(folder: Path) -> None:
        cache.publish(target, MANIFEST, fill_with({"model.blob": b"earlier"}))  # meanwhile, in another process
        fill_with({"model.blob": b"later"})(folder)

    assert cache.publish(target, MANIFEST, fill) == target
    assert (target / "model.blob").read_bytes() == b"earlier"
    cache.verify(target)
    assert names(tmp_path) == {"engine"}


def test_many_builders_at_once_publish_one_engine(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    ready = threading.Barrier(8, timeout=SAFETY_S)
    published: list[Path] = []

    def build(content: bytes) -> None:
        def fill(folder: Path) -> None:
            fill_with({"model.blob": content})(folder)
            ready.wait()

        published.append(cache.publish(target, MANIFEST, fill))

    threads = [threading.Thread(target=build, args=(bytes([number]),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_S)
    assert published == [target] * 8
    cache.verify(target)
    assert names(tmp_path) == {"engine"}


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "thesis.txt").write_text("the only copy")
    with pytest.raises(OSError, match="engine"):
        cache.publish(tmp_path / "engine", MANIFEST, fill_with(FILES))
    assert names(tmp_path) == {"engine"}
    assert names(tmp_path / "engine") == {"thesis.txt"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    cache.verify(cache.publish(tmp_path / "engine", MANIFEST, fill_with(FILES)))


# --- Reading


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(engine: Path, name: str) -> None:
    (engine / name).unlink()
    with pytest.raises(CheckpointError, match=f"engine corrupt: .*{name} has None bytes"):
        cache.read_manifest(engine)


@pytest.mark.parametrize("content", [b"blob", b"", b"blob" * 1001], ids=["short", "empty", "long"])
def test_a_file_of_another_size_is_named(engine: Path, content: bytes) -> None:
    (engine / "model.blob").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.blob has \d+ bytes, its manifest says 4000"):
        cache.read_manifest(engine)


def test_a_flipped_byte_is_found_by_verify(engine: Path) -> None:
    blob = bytearray((engine / "model.blob").read_bytes())
    blob[1234] ^= 1
    (engine / "model.blob").write_bytes(blob)
    assert cache.read_manifest(engine).files["model.blob"].size == len(blob)  # sizes alone do not show it
    with pytest.raises(CheckpointError, match=r"engine corrupt: .*model\.blob does not have the digest"):
        cache.verify(engine)


def test_a_folder_without_a_manifest_is_no_engine(tmp_path: Path, engine: Path) -> None:
    (engine / cache.MANIFEST).unlink()
    assert not cache.is_engine(engine)
    for folder in (engine, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="is not an engine folder"):
            cache.read_manifest(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"engine": "fake"}', '{"files": 3}'])
def test_a_malformed_manifest_is_no_engine(engine: Path, content: str) -> None:
    (engine / cache.MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match="is not an engine folder"):
        cache.read_manifest(engine)


def test_an_engine_of_another_schema_is_to_be_built_again(engine: Path) -> None:
    manifest = json.loads((engine / cache.MANIFEST).read_text())
    (engine / cache.MANIFEST).write_text(json.dumps({**manifest, "schema": cache.SCHEMA + 1}))
    with pytest.raises(CheckpointError, match=r"another version of BEI .*build it again"):
        cache.read_manifest(engine)


# --- Addresses


def test_an_address_is_of_the_content_and_not_of_its_order() -> None:
    first = cache.key_of({"manifest": MANIFEST, "graph": 1})
    assert first == cache.key_of({"graph": 1, "manifest": MANIFEST})
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "change",
    [{"precision": "bf16"}, {"revision": "1"}, {"source": "x"}, {"runtime": {"fake": "2"}}, {"engine": "other"}],
    ids=str,
)
def test_whatever_an_engine_is_made_from_changes_its_address(change: dict[str, object]) -> None:
    changed = msgspec.structs.replace(MANIFEST, **change)
    assert cache.key_of({"manifest": changed}) != cache.key_of({"manifest": MANIFEST})


def test_a_manifest_says_what_a_file_is() -> None:
    assert msgspec.json.decode(b'{"size": 3, "sha256": "ab"}', type=FileEntry) == FileEntry(3, "ab")
