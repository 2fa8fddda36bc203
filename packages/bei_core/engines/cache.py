"""Engine folders: self-contained, content-addressed, published whole.

    <root>/<key>/            one engine: model, tokenizer, spec
    <root>/<key>/manifest.json   written last: what built it, and size and sha256 of every other file
    <root>/.tmp-*            being built; never read

A folder without a valid manifest is not an engine. Publishing is a rename on one file system, so a reader sees all of
an engine or none of it, and of two builders of the same key the later one adopts the earlier one's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from bei_core.errors import CheckpointError

log = logging.getLogger(__name__)

MANIFEST, SPEC, TOKENIZER = "manifest.json", "spec.json", "tokenizer.json"
SCHEMA = 1


class FileEntry(msgspec.Struct, frozen=True):
    """One file of an engine folder."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine folder holds and where it comes from."""

    schema: int = SCHEMA
    engine: str  # "openvino"
    precision: str  # "f32", "bf16"
    source: str  # repository or folder of the checkpoint
    revision: str  # its commit, or the digest of its content
    runtime: dict[str, str]  # what the engine runs on and nothing else: library versions, instruction set
    built_with: dict[str, str] = {}  # versions that wrote it, for people; nothing depends on them
    files: dict[str, FileEntry] = {}

    def is_of(self, other: Manifest) -> bool:
        """Whether both are of one checkpoint, engine, precision and runtime, whatever their files."""
        same = msgspec.structs.replace
        return same(self, files={}, built_with={}) == same(other, files={}, built_with={})


def key_of(parts: Mapping[str, object]) -> str:
    """The address of an engine: 32 hex digits of the sha256 of what it is made from."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


def is_engine(folder: Path) -> bool:
    """Whether `folder` claims to be a built engine."""
    return (folder / MANIFEST).is_file()


def publish(target: Path, manifest: Manifest, fill: Callable[[Path], None]) -> Path:
    """`target`, an engine folder that `fill` wrote; one that is there already stays as it is.

    `fill` gets an empty folder beside `target`. Nothing is left behind when it raises.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        fill(draft)
        _write_manifest(draft, manifest)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:
            if not is_engine(target):
                raise
            log.info("engine %s was published by another process meanwhile", target.name)
        return target
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, every file checked to be there at its size. Raises CheckpointError naming one that is not."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as fault:
        raise CheckpointError(f"{folder} is not an engine folder: {fault}") from fault
    if manifest.schema != SCHEMA:
        raise CheckpointError(
            f"{folder} was built by another version of BEI (schema {manifest.schema}); build it again"
        )
    for name, entry in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size:
            raise CheckpointError(f"engine corrupt: {path} has {size} bytes, its manifest says {entry.size}")
    return manifest


def verify(folder: Path) -> Manifest:
    """`read_manifest`, and the digest of every file checked as well."""
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        if _sha256(folder / name) != entry.sha256:
            raise CheckpointError(f"engine corrupt: {folder / name} does not have the digest its manifest says")
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    files = {
        str(path.relative_to(folder)): FileEntry(path.stat().st_size, _sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    body = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)), indent=2)
    with (folder / MANIFEST).open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
