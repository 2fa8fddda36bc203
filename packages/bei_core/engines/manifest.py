"""The manifest of an engine folder: what the engine was built from, and the digests of its files.

manifest.json              written last; it makes the folder an engine
spec.json, tokenizer.json
…                          the files of the engine itself
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from bei_core.engines.quality import Quality
from bei_core.errors import CheckpointError, EngineCorruptError
from bei_core.models.spec import ModelSpec, load_spec
from bei_core.storage.cache import files_of, write_atomically
from bei_core.storage.errors import decode_record, disk_error
from bei_core.storage.transfer import digest_of

log = logging.getLogger(__name__)

MANIFEST, SPEC, TOKENIZER = "manifest.json", "spec.json", "tokenizer.json"
TUNED = ".tuned"  # a folder for results that are valid on this machine only; the manifest does not list its files
SCHEMA = 2

_VERIFIED = f"{TUNED}/verified.json"  # the stamps of the files when their digests were last checked
_Stamps: TypeAlias = dict[str, tuple[str, int, int, int]]  # digest, inode, size, time of modification in nanoseconds

# A result of `key_of`. Any other text is refused, because the address becomes the name of a folder.
Address: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class FileEntry(msgspec.Struct, frozen=True):
    """One file of an engine folder."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine was built from, and its files."""

    engine: str  # "openvino", "torch", "tensorrt_llm"
    precision: str  # of the weights: "f32", "bf16", "f16", "int8", "int8_weight_only", "int4_weight_only", "fp8"
    mlp_only: bool | None = None  # of a quantised engine: whether attention's layers are not; None: not recorded
    dtype: str = "auto"  # of the computation, if the settings of the server have none
    source: str  # repository or folder of the checkpoint
    revision: str  # its commit, or the digest of its content
    artifact: Address  # the engine's address: `key_of` all that decides its output
    quality: Quality | None = None  # of a quantised engine: how similar its rows are to those of f32
    built_with: dict[str, str] = {}  # versions of packages, only for information
    files: dict[str, FileEntry] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files except the manifest."""
        return sum(entry.size for entry in self.files.values())


class _Sealed(msgspec.Struct, frozen=True):
    """The content of manifest.json: a manifest with its digest."""

    schema: int
    sha256: str  # of the manifest, encoded
    manifest: Manifest


class _Schema(msgspec.Struct):
    """The field that every version of manifest.json has."""

    schema: int


def key_of(parts: Mapping[str, object]) -> str:
    """The address of an engine that is built from `parts`: the first 32 hex digits of their SHA-256."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


def is_engine(folder: Path) -> bool:
    """Whether `folder` has a manifest, valid or not."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest, after a check of its own digest and of the size of every file.

    Raises CheckpointError for a folder that is not an engine, EngineCorruptError, naming the file, for a damaged one,
    and DiskError for a file that this user may not read.
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
    """The manifest in the content of a manifest.json, after a check of its digest; `where` is for error texts.

    Raises EngineCorruptError, and CheckpointError if another version of BEI wrote it.
    """
    try:
        schema = decode_record(content, _Schema).schema
        manifest = decode_record(content, _Sealed).manifest if schema == SCHEMA else None
    except msgspec.DecodeError as error:
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} is not a manifest: {error}") from error
    if manifest is None:
        raise CheckpointError(f"{where} was built by another version of BEI (schema {schema}); build it again")
    if content != _encode(manifest):
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} is not as it was written")
    if any(name.startswith("/") or ".." in name.split("/") for name in manifest.files):
        raise EngineCorruptError(f"engine corrupt: {where}/{MANIFEST} names files outside the folder")
    return manifest


def read_spec(folder: Path) -> ModelSpec:
    """The spec in an engine folder. Raises EngineCorruptError, naming the field, if it is malformed."""
    try:
        return load_spec(folder / SPEC)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineCorruptError(f"engine corrupt: {folder / SPEC} is not a spec: {error}") from error


def verify(folder: Path) -> Manifest:
    """The manifest, after a check of the digest of every file. Raises as `read_manifest`.

    If a file is damaged, the results for this machine are deleted.
    """
    try:
        manifest = read_manifest(folder)
        check_digests(folder, manifest)
    except EngineCorruptError:
        delete_tuned(folder)
        raise
    return manifest


def delete_tuned(folder: Path) -> None:
    """Delete the results for this machine, as far as they can be deleted: for a folder with a damaged file.

    They may be computed from that file, and size and time of a repaired file may be those of the damaged one.
    """
    shutil.rmtree(folder / TUNED, ignore_errors=True)


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Raise EngineCorruptError, naming the file, if a digest differs, and DiskError if a file may not be read."""
    try:
        for name, found in _entries(folder, manifest.files):
            if found != manifest.files[name]:
                raise EngineCorruptError(f"engine corrupt: {folder / name} does not have the digest in its manifest")
    except PermissionError as error:
        raise disk_error(error, folder) from error
    except OSError as error:  # the disk fails; another copy of the engine may be intact
        raise EngineCorruptError(
            f"engine corrupt: {error.filename or folder} cannot be read: {error.strerror}"
        ) from error


def check_once(folder: Path, manifest: Manifest) -> None:
    """Check every digest, unless no file has changed since the last check. Raises as `check_digests`.

    A file that was written, replaced or copied since then has another inode, size or time of modification.
    """
    stamps = _stamps(folder, manifest)  # taken first: a file that changes during the check is checked again
    if stamps is not None and stamps == _recorded(folder):
        return
    check_digests(folder, manifest)
    try:
        write_atomically(folder / _VERIFIED, msgspec.json.encode(stamps))
    except OSError as error:  # the next start checks again
        log.debug("the check of %s is not recorded: %s", folder, error)


def unlisted_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files of an engine folder that its manifest does not list, except those in TUNED."""
    there = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    return sorted(name for name in there - {MANIFEST, *manifest.files} if not name.startswith(f"{TUNED}/"))


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder in which all other files are complete."""
    names = [path.relative_to(folder).as_posix() for path in files_of(folder)]
    content = _encode(msgspec.structs.replace(manifest, files=dict(_entries(folder, names))))
    (folder / MANIFEST).write_bytes(content)


def _encode(manifest: Manifest) -> bytes:
    """The content of manifest.json. Each manifest has exactly one encoding, so any difference is damage."""
    digest = hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()
    return msgspec.json.format(msgspec.json.encode(_Sealed(SCHEMA, digest, manifest)), indent=2)


def _entries(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, FileEntry]]:
    """The size and digest of each file. Files are hashed on several threads, because hashing releases the GIL."""
    names = list(names)
    with ThreadPoolExecutor(4) as pool:
        yield from zip(names, pool.map(lambda name: _entry(folder / name), names), strict=True)


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, digest_of(path))


def _stamps(folder: Path, manifest: Manifest) -> _Stamps | None:
    """The stamp of each file; None if one cannot be read."""
    try:
        found = {name: (folder / name).stat() for name in manifest.files}
    except OSError:
        return None
    return {name: (manifest.files[name].sha256, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in found.items()}


def _recorded(folder: Path) -> _Stamps | None:
    """The stamps at the last check; None if they are not recorded."""
    try:
        return decode_record((folder / _VERIFIED).read_bytes(), _Stamps)
    except (OSError, msgspec.MsgspecError):
        return None
