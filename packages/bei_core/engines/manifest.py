"""What an engine folder holds, where it comes from, and whether it is whole.

    manifest.json   written last: what built it, and size and sha256 of every other file
    spec.json, tokenizer.json, and what the engine of that name reads

A folder without a valid manifest is not an engine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from bei_core.engines.quality import Quality
from bei_core.errors import CheckpointError, EngineCorruptError
from bei_core.storage.disk import disk_error

MANIFEST, SPEC, TOKENIZER = "manifest.json", "spec.json", "tokenizer.json"
TUNED = ".tuned"  # what an engine learns of one machine: no part of it, so in no manifest
SCHEMA = 2

# What `key_of` gives. Whatever else a file says is refused: it becomes the name of a folder.
Address: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class FileEntry(msgspec.Struct, frozen=True):
    """One file of an engine folder."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine folder holds and where it comes from."""

    engine: str  # "openvino", "tensorrt_llm"
    precision: str  # of the weights: "f32", "bf16", "int8", "fp8"
    dtype: str = "auto"  # of the computation, where whoever loads it does not say
    source: str  # repository or folder of the checkpoint
    revision: str  # its commit, or the digest of its content
    artifact: Address  # the engine's address: `key_of` all that decides its numbers
    quality: Quality | None = None  # how near a quantised engine's rows are to f32's
    built_with: dict[str, str] = {}  # versions that wrote it, for people; nothing depends on them
    files: dict[str, FileEntry] = {}

    @property
    def num_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(entry.size for entry in self.files.values())


class _Sealed(msgspec.Struct, frozen=True):
    """What manifest.json is: a manifest and its digest."""

    schema: int
    sha256: str  # of the manifest, encoded
    manifest: Manifest


class _Schema(msgspec.Struct):
    """The field that every version's manifest.json has."""

    schema: int


def key_of(parts: Mapping[str, object]) -> str:
    """The address of what is made from `parts`: 32 hex digits of their sha256."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


def is_engine(folder: Path) -> bool:
    """Whether `folder` claims to be a built engine."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest, itself checked to be as it was written, and every file to be there at its size.

    Raises CheckpointError for a folder that is no engine, EngineCorruptError naming the file that is at fault,
    DiskError for one that this user may not read.
    """
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes(), str(folder))
        for name, entry in manifest.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry.size:
                raise EngineCorruptError(f"engine corrupt: {path} has {size} bytes, its manifest says {entry.size}")
    except PermissionError as fault:
        raise disk_error(fault, folder) from fault
    except OSError as fault:
        raise CheckpointError(f"{folder} is not an engine folder: {fault}") from fault
    return manifest


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest that a manifest.json holds. Raises EngineCorruptError; CheckpointError for another version's."""
    try:
        schema = msgspec.json.decode(content, type=_Schema).schema
        manifest = msgspec.json.decode(content, type=_Sealed).manifest if schema == SCHEMA else None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} is not a manifest: {fault}") from fault
    if manifest is None:
        raise CheckpointError(f"{where} was built by another version of BEI (schema {schema}); build it again")
    if content != _encode(manifest):
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} is not as it was written")
    if any(name.startswith("/") or ".." in name.split("/") for name in manifest.files):
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} names files outside the folder")
    return manifest


def verify(folder: Path) -> Manifest:
    """`read_manifest`, and the digest of every file checked as well."""
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    return manifest


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Raises EngineCorruptError naming a file that is not what was written, DiskError for one that may not be read."""
    try:
        for name, found in _entries(folder, manifest.files):
            if found != manifest.files[name]:
                raise EngineCorruptError(f"engine corrupt: {folder / name} does not have the digest its manifest says")
    except PermissionError as fault:
        raise disk_error(fault, folder) from fault
    except OSError as fault:  # a disk that fails, which another copy may not be on
        raise EngineCorruptError(
            f"engine corrupt: {fault.filename or folder} cannot be read: {fault.strerror}"
        ) from fault


def unnamed(folder: Path, manifest: Manifest) -> list[str]:
    """The files of an engine folder that its manifest does not name, but for what is kept there of one machine."""
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return sorted(name for name in there - {MANIFEST, *manifest.files} if not name.startswith(f"{TUNED}/"))


def seal(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder whose other files are all there; everything is on the disk then."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = _encode(msgspec.structs.replace(manifest, files=dict(_entries(folder, names))))
    for name in names:
        sync(folder / name)
    (folder / MANIFEST).write_bytes(content)
    sync(folder / MANIFEST)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encode(manifest: Manifest) -> bytes:
    """The one way in which a manifest is written, so that any other bytes are a damaged file."""
    digest = hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()
    return msgspec.json.format(msgspec.json.encode(_Sealed(SCHEMA, digest, manifest)), indent=2)


def _entries(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, FileEntry]]:
    """Each file with its size and digest, several files at a time (hashing leaves the interpreter free)."""
    names = list(names)
    with ThreadPoolExecutor(4) as pool:
        yield from zip(names, pool.map(lambda name: _entry(folder / name), names), strict=True)


def _entry(path: Path) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileEntry(size, digest.hexdigest())
