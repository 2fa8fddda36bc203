"""The `bei engines` commands: list, verify and prune the cache; push and pull engines."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import click

from bei_core.config.settings import Settings
from bei_core.engines.cache import EngineCache, publish_engine
from bei_core.engines.manifest import is_engine, unlisted_files, verify
from bei_core.engines.remote import RemoteEngines, engine_at
from bei_core.errors import CheckpointError, ConfigError, DiskError, EngineCorruptError
from bei_core.storage.backends import redact, store_examples
from bei_core.storage.cache import Entry
from bei_core.storage.errors import OUTPUT, translate_os_errors

_CACHE_DIR = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="Folder of the cache. [default: that of BEI_CACHE_DIR]"
)


@click.group()
def command() -> None:
    """List, check, remove and share built engines."""


@command.command("list")
@_CACHE_DIR
def list_engines(cache_dir: Path | None) -> None:
    """List the engines in the cache, then the fetched checkpoints; the least recently used are first."""
    cache = _cache(cache_dir)
    for entry in (*cache.entries(), *cache.checkpoint_entries()):
        click.echo(_line(entry))


@command.command("verify")
@click.argument("engines", nargs=-1)
@_CACHE_DIR
def verify_engines(engines: tuple[str, ...], cache_dir: Path | None) -> None:
    """Check every file of ENGINES against the engine's manifest. If a file differs, name it and exit with status 1.

    ENGINES are addresses (or their first digits) or folders; without any, all engines in the cache are checked. An
    engine of another version of BEI cannot be checked, which is a failure only if that engine is named.
    """
    cache = _cache(cache_dir)
    all_engines = [entry.folder for entry in cache.entries() if entry.record.kind != "leftover"]
    folders = [_find(cache, engine) for engine in engines] or all_engines
    damaged = 0
    for folder in folders:
        try:
            manifest = verify(folder)
            click.echo(f"{folder}: whole, {len(manifest.files)} files, {manifest.num_bytes / 1e6:.1f} MB")
            for name in unlisted_files(folder, manifest):
                click.echo(f"warning: {folder / name} is not in the engine's manifest and cannot be checked", err=True)
        except (CheckpointError, DiskError) as error:
            click.echo(str(error), err=True)
            damaged += bool(engines) or isinstance(error, (EngineCorruptError, DiskError))
    sys.exit(bool(damaged))


@command.command()
@click.option("--max-gb", type=click.FloatRange(min=0), help="Keep at most this many GB; 0 keeps nothing.")
@_CACHE_DIR
def prune(max_gb: float | None, cache_dir: Path | None) -> None:
    """Remove leftovers. With --max-gb, also remove checkpoints, then engines, until the rest fits; not those in use."""
    removed = _cache(cache_dir).evict(None if max_gb is None else int(max_gb * 1e9))
    for entry in removed:
        click.echo(f"removed {_line(entry)}")
    click.echo(f"{sum(entry.num_bytes for entry in removed) / 1e6:.1f} MB removed")


@command.command(
    help=f"""Copy ENGINE into an object store, and print its URL there.

    ENGINE is an address (or its first digits) or a folder; URL is such as {store_examples()}.
    """
)
@click.argument("engine")
@click.argument("url")
@click.option("--force", is_flag=True, help="Write it again although it is there.")
@_CACHE_DIR
def push(engine: str, url: str, force: bool, cache_dir: Path | None) -> None:
    """`bei engines push`."""
    click.echo(RemoteEngines(url).push(_find(_cache(cache_dir), engine), force=force))


@command.command("pull")
@click.argument("url")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write. [default: the cache]")
@_CACHE_DIR
def pull_engine(url: str, output: Path | None, cache_dir: Path | None) -> None:
    """Copy an engine from an object store, check it, and print its folder. URL is the one that push prints."""
    engine = engine_at(url)
    manifest = engine.manifest()
    if manifest is None:
        raise CheckpointError(f"{redact(url)} is not an engine: it has no manifest.json")
    pull = partial(engine.pull, artifact=manifest.artifact)
    if output is None:
        lease = _cache(cache_dir).obtain(manifest.artifact, pull)
        lease.release()
        click.echo(lease.folder)
    elif output.exists():
        raise ConfigError(f"{output} exists already; name a new folder")
    else:
        with translate_os_errors(output.parent, OUTPUT):
            publish_engine(output, pull)
        click.echo(output)


def _cache(cache_dir: Path | None) -> EngineCache:
    return EngineCache.of(Settings.load({"cache_dir": cache_dir}, os.environ))


def _find(cache: EngineCache, name: str) -> Path:
    """The folder of an engine by its address, by the first digits of it, or by folder. Raises ConfigError."""
    if is_engine(Path(name)):
        return Path(name)
    found = [entry.folder for entry in cache.entries() if entry.folder.name.startswith(name)]
    if len(found) != 1:
        raise ConfigError(f"{len(found) or 'no'} engines in {cache.root} have an address that begins with {name!r}")
    return found[0]


def _line(entry: Entry) -> str:
    """An entry as one line: name, kind, size, "in use" or the time of its last use, source."""
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
    state = "in use" if entry.in_use else f"used {used}"
    record = entry.record
    return f"{entry.folder.name}  {record.label}  {entry.num_bytes / 1e6:.1f} MB  {state}  {record.source}".rstrip()
