"""The manifest of an engine folder: what is in the folder, what it was built from, and whether it is whole.

    manifest.json   written last: what it was built from, and size and sha256 of every other file
    spec.json, tokenizer.json, and the files of the engine of that name

A folder without a valid manifest is not an engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from bei_core.engines.quality import Quality
from bei_core.errors import CheckpointError, EngineCorruptError
from bei_core.storage.cache import files_of
from bei_core.storage.errors import disk_error
from bei_core.storage.transfer import digest_of

MANIFEST, SPEC, TOKENIZER = "manifest.json", "spec.json", "tokenizer.json"
TUNED = ".tuned"  # the folder of what an engine learns about one machine, which no manifest lists
SCHEMA = 2

# What `key_of` returns. Anything else is refused, because it becomes the name of a folder.
Address: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class FileEntry(msgspec.Struct, frozen=True):
    """One file of an engine folder."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is in an engine folder and what it was built from."""

    engine: str  # "openvino", "tensorrt_llm"
    precision: str  # of the weights: "f32", "bf16", "int8", "fp8"
    dtype: str = "auto"  # of the computation, if the settings do not say it
    source: str  # repository or folder of the checkpoint
    revision: str  # its commit, or the digest of its content
    artifact: Address  # the engine's address: `key_of` everything that decides its output
    quality: Quality | None = None  # of a quantised engine: how similar its rows are to those of f32
    built_with: dict[str, str] = {}  # versions of packages, for information alone
    files: dict[str, FileEntry] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files except the manifest."""
        return sum(entry.size for entry in self.files.values())


class _Sealed(msgspec.Struct, frozen=True):
    """The content of manifest.json: a manifest and its digest."""

    schema: int
    sha256: str  # of the manifest, encoded
    manifest: Manifest


class _Schema(msgspec.Struct):
    """The field that manifest.json has in every version."""

    schema: int


def key_of(parts: Mapping[str, object]) -> str:
    """The address of what is built from `parts`: 32 hex digits of their sha256."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


def is_engine(folder: Path) -> bool:
    """Whether `folder` claims to be a built engine."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest, after a check of its own digest and of the size of every file.

    Raises CheckpointError for a folder that is no engine, EngineCorruptError naming the file that is damaged, DiskError
    for a file that this user may not read.
    """
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes(), str(folder))
        for name, entry in manifest.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry.size:
                raise EngineCorruptError(f"engine corrupt: {path} has {size} bytes, its manifest says {entry.size}")
    except PermissionError as error:
        raise disk_error(error, folder) from error
    except OSError as error:
        raise CheckpointError(f"{folder} is not an engine folder: {error}") from error
    return manifest


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest in a manifest.json. Raises EngineCorruptError; CheckpointError if another version wrote it."""
    try:
        schema = msgspec.json.decode(content, type=_Schema).schema
        manifest = msgspec.json.decode(content, type=_Sealed).manifest if schema == SCHEMA else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} is not a manifest: {error}") from error
    if manifest is None:
        raise CheckpointError(f"{where} was built by another version of BEI (schema {schema}); build it again")
    if content != _encode(manifest):
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} is not as it was written")
    if any(name.startswith("/") or ".." in name.split("/") for name in manifest.files):
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} names files outside the folder")
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest, after a check of the digest of every file. Raises as `read_manifest`."""
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    return manifest


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Raise EngineCorruptError naming a file that is not what was written, DiskError for one that may not be read."""
    try:
        for name, found in _entries(folder, manifest.files):
            if found != manifest.files[name]:
                raise EngineCorruptError(f"engine corrupt: {folder / name} does not have the digest its manifest says")
    except PermissionError as error:
        raise disk_error(error, folder) from error
    except OSError as error:  # a failing disk; another copy of the engine may be on a good one
        raise EngineCorruptError(
            f"engine corrupt: {error.filename or folder} cannot be read: {error.strerror}"
        ) from error


def unnamed(folder: Path, manifest: Manifest) -> list[str]:
    """The files of an engine folder that its manifest does not list, except those in TUNED."""
    there = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    return sorted(name for name in there - {MANIFEST, *manifest.files} if not name.startswith(f"{TUNED}/"))


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose other files are complete."""
    names = [path.relative_to(folder).as_posix() for path in files_of(folder)]
    content = _encode(msgspec.structs.replace(manifest, files=dict(_entries(folder, names))))
    (folder / MANIFEST).write_bytes(content)


def _encode(manifest: Manifest) -> bytes:
    """The content of manifest.json. A manifest has one encoding only, so any other bytes are damage."""
    digest = hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()
    return msgspec.json.format(msgspec.json.encode(_Sealed(SCHEMA, digest, manifest)), indent=2)


def _entries(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, FileEntry]]:
    """Each file with its size and digest, several files at a time: hashing releases the GIL."""
    names = list(names)
    with ThreadPoolExecutor(4) as pool:
        yield from zip(names, pool.map(lambda name: _entry(folder / name), names), strict=True)


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, digest_of(path))
