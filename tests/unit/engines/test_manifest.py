"""Damage of an engine folder is found before it is used, and the error names the file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from bei_core.engines.manifest import (
    MANIFEST,
    SCHEMA,
    FileEntry,
    Manifest,
    _encode,
    is_engine,
    key_of,
    read_manifest,
    seal,
    verify,
)
from bei_core.engines.quality import Quality
from bei_core.errors import CheckpointError, EngineCorruptError
from bei_core.models.kind import Kind

QUALITY = Quality(kind=Kind.EMBEDDING, num_rows=9, mean_cosine=0.998, min_cosine=0.99, max_abs=0.1, norm_ratio=1.0)
MADE = Manifest(
    engine="fake", precision="int8", source="owner/name", revision="0" * 40, artifact="a" * 32, quality=QUALITY
)
FILES = {"model.bin": b"blob" * 1000, "spec.json": b"{}", "deep/er/tokenizer.json": b"tokens", "empty": b""}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A sealed engine folder."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    seal(tmp_path, MADE)
    return tmp_path


def test_a_manifest_is_read_as_it_was_written(engine: Path) -> None:
    manifest = verify(engine)
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        name: len(content) for name, content in FILES.items()
    }
    assert manifest.num_bytes == sum(map(len, FILES.values()))
    assert msgspec.structs.replace(manifest, files={}) == MADE


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(engine: Path, name: str) -> None:
    (engine / name).unlink()
    with pytest.raises(EngineCorruptError, match=f"engine corrupt: .*{name} has None bytes"):
        read_manifest(engine)


@pytest.mark.parametrize("content", [b"blob", b"", b"blob" * 1001], ids=["short", "empty", "long"])
def test_a_file_of_another_size_is_named(engine: Path, content: bytes) -> None:
    (engine / "model.bin").write_bytes(content)
    with pytest.raises(EngineCorruptError, match=r"model\.bin has \d+ bytes, its manifest says 4000"):
        read_manifest(engine)


@pytest.mark.parametrize("name", [name for name in FILES if FILES[name]])
def test_a_flipped_bit_of_any_file_is_found(engine: Path, name: str) -> None:
    content = bytearray((engine / name).read_bytes())
    content[len(content) // 2] ^= 1
    (engine / name).write_bytes(content)
    read_manifest(engine)  # sizes alone do not show it
    with pytest.raises(EngineCorruptError, match=rf"engine corrupt: .*{name} does not have the digest"):
        verify(engine)


def test_any_flipped_bit_of_the_manifest_is_found(engine: Path) -> None:
    content = (engine / MANIFEST).read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (engine / MANIFEST).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"engine corrupt: .*manifest\.json|built by another version"):
            read_manifest(engine)


def test_a_folder_without_a_manifest_is_no_engine(tmp_path: Path, engine: Path) -> None:
    (engine / MANIFEST).unlink()
    assert not is_engine(engine)
    for folder in (engine, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="is not an engine folder"):
            read_manifest(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"engine": "fake"}', '{"files": 3}', f'{{"schema": {SCHEMA}}}'])
def test_a_malformed_manifest_is_named(engine: Path, content: str) -> None:
    (engine / MANIFEST).write_text(content)
    with pytest.raises(EngineCorruptError, match=r"engine corrupt: .*manifest\.json is not a manifest"):
        read_manifest(engine)


def test_an_engine_of_another_schema_is_to_be_built_again(engine: Path) -> None:
    manifest = json.loads((engine / MANIFEST).read_text())
    (engine / MANIFEST).write_text(json.dumps({**manifest, "schema": SCHEMA + 1}))
    with pytest.raises(CheckpointError, match=r"another version of BEI .*build it again"):
        read_manifest(engine)


@pytest.mark.parametrize("address", ["../" * 10 + "srv", "", "A" * 32, "a" * 31, "a" * 32 + "\n"])
def test_an_address_that_is_no_digest_names_no_folder(engine: Path, address: str) -> None:
    (engine / MANIFEST).unlink()
    seal(engine, msgspec.structs.replace(MADE, artifact=address))
    with pytest.raises(EngineCorruptError, match=r"manifest\.json is not a manifest"):
        read_manifest(engine)


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b", ".."])
def test_a_file_outside_the_folder_is_refused(engine: Path, name: str) -> None:
    (engine / MANIFEST).write_bytes(_encode(msgspec.structs.replace(MADE, files={name: FileEntry(1, "0" * 64)})))
    with pytest.raises(EngineCorruptError, match=r"manifest\.json names files outside the folder"):
        read_manifest(engine)


def test_an_address_is_of_the_content_and_not_of_its_order() -> None:
    first = key_of({"spec": MADE, "graph": 1})
    assert first == key_of({"graph": 1, "spec": MADE})
    assert first != key_of({"graph": 2, "spec": MADE})
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")


def test_a_manifest_has_the_size_and_digest_of_each_file() -> None:
    assert msgspec.json.decode(b'{"size": 3, "sha256": "ab"}', type=FileEntry) == FileEntry(3, "ab")
