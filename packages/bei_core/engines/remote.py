"""Engines in an object store, each in a folder of its own as on a disk, so that any tool can copy it.

    <url>/<artifact>/…               the files; manifest.json is written last, and without it nothing is there
    <url>/requests/<key>.json        which engine a request for a model was answered with

What is fetched is checked file by file before it is an engine here, whatever happened to it there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from bei_core.engines.manifest import MANIFEST, Manifest, check_digests, parse_manifest, read_manifest, verify
from bei_core.engines.store import Request
from bei_core.errors import CheckpointError, EngineCorruptError
from bei_core.storage.disk import disk_error, is_full, writing
from bei_core.storage.objects import FileSystem, explained, open_store, shown

log = logging.getLogger(__name__)

_NUM_TRANSFERS = 8
_MAX_PUSHES = 3  # of one engine, where others push it too


@dataclass(frozen=True, slots=True)
class RemoteEngine:
    """One engine in an object store, or the place of one, by the one client that reads and writes it."""

    url: str
    secret: str | None
    files: FileSystem
    path: str  # on it

    @classmethod
    def at(cls, url: str, secret: str | None = None) -> RemoteEngine:
        """The engine at a URL. Raises CheckpointError for a URL or secret of the wrong form."""
        return cls(url.rstrip("/"), secret, *open_store(url, secret))

    def manifest(self) -> Manifest | None:
        """Its manifest; None where there is none. Raises CheckpointError, EngineCorruptError."""
        content = self._sealed()
        return None if content is None else parse_manifest(content, shown(self.url))

    def pull(self, folder: Path, *, artifact: str | None = None) -> None:
        """Fills a folder with the engine, which must be `artifact`.

        Raises CheckpointError, EngineCorruptError, DiskError.
        """
        manifest = self.manifest()
        if manifest is None:
            raise CheckpointError(f"{shown(self.url)} is not an engine: there is no {MANIFEST}")
        if artifact is not None and manifest.artifact != artifact:
            raise EngineCorruptError(
                f"engine corrupt: {shown(self.url)}/{MANIFEST} is another engine's, {manifest.artifact}"
            )
        started = time.perf_counter()
        with explained(self.url, self.secret):
            _each((MANIFEST, *manifest.files), lambda name: self._get(name, folder))
        verify(folder)
        log.info("engine pulled from %s: %s", shown(self.url), _rate(manifest, started))

    def push(self, folder: Path, *, force: bool = False) -> None:
        """Copies an engine folder there; an engine that is there stays as it is unless `force`.

        Raises EngineCorruptError for a damaged folder, CheckpointError where the store cannot be written, or where
        another build's manifest is there however often this one is written.
        """
        manifest = read_manifest(folder)
        if not force and self.manifest() is not None:
            log.info("engine %s is there already", shown(self.url))
            return
        check_digests(folder, manifest)
        started = time.perf_counter()
        for number in range(_MAX_PUSHES):
            if number:  # the other's build may differ in bits, and of some files there are its own, of some these
                log.info("another replica has pushed %s meanwhile; it is written again", shown(self.url))
            if self._put(folder, manifest, clear=force or number > 0):
                log.info("engine pushed to %s: %s", shown(self.url), _rate(manifest, started))
                return
        raise CheckpointError(
            f"{shown(self.url)}: after {_MAX_PUSHES} pushes there is still another build's {MANIFEST}; "
            "others push it too, or what is deleted there can be read on"
        )

    def _put(self, folder: Path, manifest: Manifest, *, clear: bool) -> bool:
        """Whether the files and at last the manifest are written: not where another's manifest came meanwhile."""
        with explained(self.url, self.secret):
            if clear:  # while the files change there is none, rather than one that is damaged
                with suppress(FileNotFoundError):
                    self.files.rm_file(f"{self.path}/{MANIFEST}")
            _each(manifest.files, lambda name: self.files.put_file(str(folder / name), f"{self.path}/{name}"))
            if self._sealed() not in {None, (folder / MANIFEST).read_bytes()}:
                return False
            self.files.put_file(str(folder / MANIFEST), f"{self.path}/{MANIFEST}")
        return True

    def _sealed(self) -> bytes | None:
        return _read(self.files, f"{self.path}/{MANIFEST}", f"{self.url}/{MANIFEST}", self.secret)

    def _get(self, name: str, folder: Path) -> None:
        source, target = f"{self.path}/{name}", folder / name
        with writing(folder.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.files.get_file(source, str(target))
        except FileNotFoundError as fault:
            raise EngineCorruptError(f"engine corrupt: {source} is missing") from fault
        except OSError as fault:
            if is_full(fault):  # the disk here: what is only read there cannot be
                raise disk_error(fault, folder.parent) from fault
            raise


@dataclass(frozen=True)
class Remote:
    """The engines under one URL, by one client, made when it is first needed: that takes an SDK a third of a second."""

    url: str
    secret: str | None = None

    def at(self, artifact: str) -> str:
        """The URL of an engine."""
        return f"{self.url.rstrip('/')}/{artifact}"

    def engine(self, artifact: str) -> RemoteEngine:
        """An engine, or its place. Raises CheckpointError for a URL or secret of the wrong form."""
        files, path = self._client
        return RemoteEngine(self.at(artifact), self.secret, files, f"{path}/{artifact}")

    def manifest(self, artifact: str) -> Manifest | None:
        """The manifest of an engine; None where there is none. Raises CheckpointError, EngineCorruptError."""
        return self.engine(artifact).manifest()

    def push(self, folder: Path, *, force: bool = False) -> str:
        """The URL of an engine folder's copy. Raises as `RemoteEngine.push`, which it is."""
        engine = self.engine(read_manifest(folder).artifact)
        engine.push(folder, force=force)
        return engine.url

    def pull(self, artifact: str, folder: Path) -> None:
        """Fills a folder with an engine. Raises as `RemoteEngine.pull`, which it is."""
        self.engine(artifact).pull(folder, artifact=artifact)

    def answered(self, key: str) -> Request | None:
        """What a request was answered with, wherever that was. Raises CheckpointError where that cannot be known."""
        files, path = self._client
        name = f"requests/{key}.json"
        content = _read(files, f"{path}/{name}", f"{self.url.rstrip('/')}/{name}", self.secret)
        try:
            return None if content is None else msgspec.json.decode(content, type=Request)
        except msgspec.DecodeError as fault:
            log.warning("%s: %s is damaged and not looked at: %s", shown(self.url), name, fault)
            return None

    def remember(self, key: str, answer: Request) -> None:
        """Notes which engine a request was answered with. Raises CheckpointError."""
        files, path = self._client
        with explained(self.url, self.secret):
            files.pipe_file(f"{path}/requests/{key}.json", msgspec.json.encode(answer))

    @cached_property
    def _client(self) -> tuple[FileSystem, str]:
        return open_store(self.url, self.secret)


def _read(files: FileSystem, path: str, url: str, secret: str | None) -> bytes | None:
    """A small file's content; None where it is not there. Raises CheckpointError where that cannot be known."""
    with explained(url, secret):
        try:
            return bytes(files.cat_file(path))
        except FileNotFoundError:
            return None


def _each(names: Iterable[str], do: Callable[[str], None]) -> None:
    """Several at a time; raises the first error once those under way have ended."""
    with ThreadPoolExecutor(_NUM_TRANSFERS) as pool:
        for done in [pool.submit(do, name) for name in names]:
            done.result()


def _rate(manifest: Manifest, started: float) -> str:
    seconds = time.perf_counter() - started
    return f"{manifest.num_bytes / 1e6:.1f} MB in {seconds:.1f} s"
