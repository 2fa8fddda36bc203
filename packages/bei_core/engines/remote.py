"""Engines in an object store. Their files are the same as in the cache, so any tool can copy them.

    <url>/<artifact>/…               the files of an engine; manifest.json is written last and makes it an engine
    <url>/requests/<key>.json        a ref from settings to their engine

Every fetched file is checked against its manifest before the engine is used.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from bei_core.engines.cache import EngineRef
from bei_core.engines.manifest import MANIFEST, Manifest, check_digests, parse_manifest, read_manifest, verify
from bei_core.errors import CheckpointError, EngineCorruptError
from bei_core.storage.backends import redact
from bei_core.storage.errors import decode_record
from bei_core.storage.objects import ObjectStore
from bei_core.storage.progress import rate
from bei_core.storage.transfer import RemoteFile, fetch, in_blocks

log = logging.getLogger(__name__)

_NUM_UPLOADS = 8  # at the same time
_MAX_PUSHES = 3  # of one engine, if other replicas push it too


@dataclass(frozen=True, slots=True)
class RemoteEngine:
    """One engine in an object store, which may not exist yet."""

    store: ObjectStore
    folder: str = ""  # below the store's URL, with a slash at its end; empty if the URL is that of the engine

    @property
    def url(self) -> str:
        """The URL of the engine's folder."""
        return f"{self.store.url}/{self.folder}".rstrip("/")

    def manifest(self) -> Manifest | None:
        """Its manifest; None if the engine does not exist. Raises CheckpointError, EngineCorruptError."""
        content = self._read_manifest()
        return None if content is None else parse_manifest(content, redact(self.url))

    def pull(self, folder: Path, *, artifact: str | None = None) -> None:
        """Download the engine into a folder. If `artifact` is given, the engine must have that address.

        Raises CheckpointError, EngineCorruptError, and OSError for errors of the disk.
        """
        content, source = self._read_manifest(), redact(self.url)
        if content is None:
            raise CheckpointError(f"{source} is not an engine: there is no {MANIFEST}")
        manifest = parse_manifest(content, source)
        if artifact is not None and manifest.artifact != artifact:
            raise EngineCorruptError(
                f"engine corrupt: {source}/{MANIFEST} is that of another engine, {manifest.artifact}"
            )
        started = time.perf_counter()
        fetch([self._remote_file(name, entry.size) for name, entry in manifest.files.items()], folder)
        (folder / MANIFEST).write_bytes(content)
        verify(folder)
        log.info("engine pulled from %s: %s", source, rate(manifest.num_bytes, time.perf_counter() - started))

    def push(self, folder: Path, *, force: bool = False) -> None:
        """Copy an engine folder into the store. Without `force`, an engine that the store already has is kept.

        Raises EngineCorruptError for a damaged folder, and CheckpointError if the store cannot be written or other
        replicas replace the manifest after every attempt.
        """
        manifest, source = read_manifest(folder), redact(self.url)
        if not force and self.manifest() is not None:
            log.info("the store already has the engine %s", source)
            return
        check_digests(folder, manifest)
        started = time.perf_counter()
        for number in range(_MAX_PUSHES):
            if number:  # two builds may differ in some bits, and the store may now have files of both
                log.info("another replica has pushed %s at the same time; pushing it again", source)
            if self._upload(folder, manifest, clear=force or number > 0):
                log.info("engine pushed to %s: %s", source, rate(manifest.num_bytes, time.perf_counter() - started))
                return
        raise CheckpointError(
            f"{source}: after {_MAX_PUSHES} pushes the {MANIFEST} is still that of another build; "
            "other replicas push it too, or the store still returns files that were deleted"
        )

    def _upload(self, folder: Path, manifest: Manifest, *, clear: bool) -> bool:
        """Write all files, then the manifest; returns False if another replica has written its manifest first."""
        if clear:  # without a manifest, other replicas see no engine while files change, instead of a damaged one
            self.store.delete(self.folder + MANIFEST)
        with ThreadPoolExecutor(_NUM_UPLOADS) as pool:
            list(pool.map(lambda name: self.store.upload(folder / name, self.folder + name), manifest.files))
        if self._read_manifest() not in {None, (folder / MANIFEST).read_bytes()}:
            return False
        self.store.upload(folder / MANIFEST, self.folder + MANIFEST)
        return True

    def _read_manifest(self) -> bytes | None:
        return self.store.read(self.folder + MANIFEST)

    def _remote_file(self, name: str, size: int) -> RemoteFile:
        label = f"{redact(self.url)}/{name}"
        return RemoteFile(name, label, size, in_blocks(partial(self._read, name, label), size, label))

    def _read(self, name: str, label: str, begin: int, end: int) -> bytes:
        """Bytes of a file. Raises EngineCorruptError if the file is missing or shorter than `end`."""
        block = self.store.read(self.folder + name, begin, end)
        if block is None:
            raise EngineCorruptError(f"engine corrupt: {label} is missing")
        if len(block) < end - begin:
            raise EngineCorruptError(f"engine corrupt: {label} has {begin + len(block)} bytes, fewer than it should")
        return block


def engine_at(url: str, secret: str | None = None) -> RemoteEngine:
    """The engine whose folder has this URL. Raises ConfigError if it is not a URL of an object store."""
    return RemoteEngine(ObjectStore(url, secret))


class RemoteEngines:
    """The engines under one URL of an object store."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.store = ObjectStore(url, secret)

    def engine(self, artifact: str) -> RemoteEngine:
        """The engine with an address, which may not exist yet."""
        return RemoteEngine(self.store, f"{artifact}/")

    def push(self, folder: Path, *, force: bool = False) -> str:
        """Copy an engine folder into the store; returns its URL there. Raises as `RemoteEngine.push`."""
        engine = self.engine(read_manifest(folder).artifact)
        engine.push(folder, force=force)
        return engine.url

    def get_ref(self, key: str) -> EngineRef | None:
        """A ref that a replica has written, or None. Raises CheckpointError if the store fails."""
        name = f"requests/{key}.json"
        content = self.store.read(name)
        try:
            return None if content is None else decode_record(content, EngineRef)
        except msgspec.DecodeError as error:
            log.warning("%s: %s is damaged and is ignored: %s", redact(self.store.url), name, error)
            return None

    def set_ref(self, key: str, ref: EngineRef) -> None:
        """Write a ref. Raises CheckpointError."""
        self.store.write(f"requests/{key}.json", ref.encode())
