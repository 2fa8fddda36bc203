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
from pathlib import Path

import msgspec

from bei_core.engines.manifest import MANIFEST, Manifest, check_digests, parse_manifest, read_manifest, verify
from bei_core.engines.store import Request
from bei_core.errors import CheckpointError, EngineCorrupt
from bei_core.objects import FileSystem, explained, open_store, shown

log = logging.getLogger(__name__)

_NUM_TRANSFERS = 8


@dataclass(frozen=True, slots=True)
class Remote:
    """The engines under one URL."""

    url: str
    secret: str | None = None

    def at(self, artifact: str) -> str:
        """The URL of an engine."""
        return f"{self.url.rstrip('/')}/{artifact}"

    def manifest(self, artifact: str) -> Manifest | None:
        """The manifest of an engine; None where there is none."""
        return manifest_at(self.at(artifact), self.secret)

    def push(self, folder: Path, *, force: bool = False) -> str:
        """The URL of an engine folder's copy; one that is there stays as it is unless `force`.

        Raises EngineCorrupt for a damaged folder, CheckpointError where the store cannot be written.
        """
        manifest = read_manifest(folder)
        url = self.at(manifest.artifact)
        if not force and manifest_at(url, self.secret) is not None:
            log.info("engine %s is there already", shown(url))
            return url
        check_digests(folder, manifest)
        started = time.perf_counter()
        fs, path = open_store(url, self.secret)
        with explained(url, self.secret):
            if force:  # while the files change there is none, rather than one that is damaged
                with suppress(FileNotFoundError):
                    fs.rm_file(f"{path}/{MANIFEST}")
            _each(manifest.files, lambda name: fs.put_file(str(folder / name), f"{path}/{name}"))
            fs.put_file(str(folder / MANIFEST), f"{path}/{MANIFEST}")
        log.info("engine pushed to %s: %s", shown(url), _rate(manifest, started))
        return url

    def pull(self, artifact: str, folder: Path) -> None:
        """Fills a folder with an engine. Raises CheckpointError for none, EngineCorrupt for a damaged one."""
        pull(self.at(artifact), folder, self.secret, artifact=artifact)

    def answered(self, key: str) -> Request | None:
        """What a request was answered with, wherever that was."""
        content = _read(f"{self.url.rstrip('/')}/requests/{key}.json", self.secret)
        try:
            return None if content is None else msgspec.json.decode(content, type=Request)
        except msgspec.DecodeError as fault:
            log.warning("%s: requests/%s.json is damaged and not looked at: %s", shown(self.url), key, fault)
            return None

    def remember(self, key: str, answer: Request) -> None:
        """Notes which engine a request was answered with."""
        fs, path = open_store(f"{self.url.rstrip('/')}/requests/{key}.json", self.secret)
        with explained(self.url, self.secret):
            fs.pipe_file(path, msgspec.json.encode(answer))


def manifest_at(url: str, secret: str | None = None) -> Manifest | None:
    """The manifest of the engine at a URL; None where there is none. Raises CheckpointError, EngineCorrupt."""
    content = _read(f"{url.rstrip('/')}/{MANIFEST}", secret)
    return None if content is None else parse_manifest(content, shown(url))


def pull(url: str, folder: Path, secret: str | None = None, *, artifact: str | None = None) -> None:
    """Fills a folder with the engine at a URL, which must be `artifact`. Raises CheckpointError, EngineCorrupt."""
    manifest = manifest_at(url, secret)
    if manifest is None:
        raise CheckpointError(f"{shown(url)} is not an engine: there is no {MANIFEST}")
    if artifact is not None and manifest.artifact != artifact:
        raise EngineCorrupt(f"engine corrupt: {shown(url)}/{MANIFEST} is another engine's, {manifest.artifact}")
    started = time.perf_counter()
    fs, path = open_store(url, secret)
    with explained(url, secret):
        _each((MANIFEST, *manifest.files), lambda name: _get(fs, f"{path}/{name}", folder / name))
    verify(folder)
    log.info("engine pulled from %s: %s", shown(url), _rate(manifest, started))


def _read(url: str, secret: str | None) -> bytes | None:
    """A small file's content; None where it is not there. Raises CheckpointError where that cannot be known."""
    fs, path = open_store(url, secret)
    with explained(url, secret):
        try:
            return bytes(fs.cat_file(path))
        except FileNotFoundError:
            return None


def _get(fs: FileSystem, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        fs.get_file(source, str(target))
    except FileNotFoundError as fault:
        raise EngineCorrupt(f"engine corrupt: {source} is missing") from fault


def _each(names: Iterable[str], do: Callable[[str], None]) -> None:
    """Several at a time; raises the first error once those under way have ended."""
    with ThreadPoolExecutor(_NUM_TRANSFERS) as pool:
        for done in [pool.submit(do, name) for name in names]:
            done.result()


def _rate(manifest: Manifest, started: float) -> str:
    seconds = time.perf_counter() - started
    return f"{manifest.num_bytes / 1e6:.1f} MB in {seconds:.1f} s"
