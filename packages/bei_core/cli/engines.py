"""The `bei engines` commands: what is in the cache, whether it is whole, what goes, what is shared."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import click

from bei_core.config.settings import Settings
from bei_core.engines.manifest import is_engine, unnamed, verify
from bei_core.engines.provider import store_of
from bei_core.engines.remote import Remote, RemoteEngine
from bei_core.engines.store import Entry, Store, publish
from bei_core.errors import CheckpointError, ConfigError, DiskError, EngineCorruptError
from bei_core.storage.disk import OUTPUT, writing
from bei_core.storage.objects import shown

_CACHE_DIR = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="Folder of the cache. [default: that of BEI_CACHE_DIR]"
)


@click.group()
def command() -> None:
    """List, check, remove and share built engines."""


@command.command("list")
@_CACHE_DIR
def list_engines(cache_dir: Path | None) -> None:
    """List the engines of the store and the fetched checkpoints, each the least recently used first."""
    store = _store(cache_dir)
    for entry in (*store.entries(), *store.checkpoints()):
        click.echo(_line(entry))


@command.command("verify")
@click.argument("engines", nargs=-1)
@_CACHE_DIR
def verify_engines(engines: tuple[str, ...], cache_dir: Path | None) -> None:
    """Check every file of ENGINES against their manifests; ends with 1 and names each file that differs.

    ENGINES are addresses (or their first digits) or folders; without any, all are checked. An engine of another version
    cannot be checked; that is a failure only if it was named.
    """
    store = _store(cache_dir)
    there = [entry.folder for entry in store.entries() if entry.kind != "leftover"]
    folders = [_find(store, engine) for engine in engines] or there
    damaged = 0
    for folder in folders:
        try:
            manifest = verify(folder)
            click.echo(f"{folder}: whole, {len(manifest.files)} files, {manifest.num_bytes / 1e6:.1f} MB")
            for name in unnamed(folder, manifest):
                click.echo(f"warning: {folder / name} is not in the engine's manifest: nobody vouches for it", err=True)
        except (CheckpointError, DiskError) as fault:
            click.echo(str(fault), err=True)
            damaged += bool(engines) or isinstance(fault, (EngineCorruptError, DiskError))
    sys.exit(bool(damaged))


@command.command()
@click.option("--max-gb", type=click.FloatRange(min=0), help="Keep at most this many GB; 0 keeps nothing.")
@_CACHE_DIR
def prune(max_gb: float | None, cache_dir: Path | None) -> None:
    """Remove what was left behind; beyond a size fetched checkpoints, then engines; never what is in use."""
    removed = _store(cache_dir).trim(None if max_gb is None else int(max_gb * 1e9))
    for entry in removed:
        click.echo(f"removed {_line(entry)}")
    click.echo(f"{sum(entry.num_bytes for entry in removed) / 1e6:.1f} MB removed")


@command.command()
@click.argument("engine")
@click.argument("url")
@click.option("--force", is_flag=True, help="Write it again although it is there.")
@_CACHE_DIR
def push(engine: str, url: str, force: bool, cache_dir: Path | None) -> None:
    """Copy ENGINE into an object store, and print its URL there.

    ENGINE is an address (or its first digits) or a folder; URL is s3://, gs://, azure:// or file://.
    """
    click.echo(Remote(url).push(_find(_store(cache_dir), engine), force=force))


@command.command("pull")
@click.argument("url")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write. [default: the cache]")
@_CACHE_DIR
def pull_engine(url: str, output: Path | None, cache_dir: Path | None) -> None:
    """Copy an engine from an object store, check it, and print its folder; URL is what push printed."""
    engine = RemoteEngine.at(url)
    manifest = engine.manifest()
    if manifest is None:
        raise CheckpointError(f"{shown(url)} is not an engine: it has no manifest.json")
    pull = partial(engine.pull, artifact=manifest.artifact)
    if output is None:
        held = _store(cache_dir).obtain(manifest.artifact, pull)
        held.release()
        click.echo(held.folder)
    elif output.exists():
        raise ConfigError(f"{output} is there; name a new folder")
    else:
        with writing(output, OUTPUT):
            publish(output, pull)
        click.echo(output)


def _store(cache_dir: Path | None) -> Store:
    return store_of(Settings.load({"cache_dir": cache_dir}, os.environ))


def _find(store: Store, name: str) -> Path:
    """The engine of an address, of its first digits, or of a folder. Raises ConfigError for none or several."""
    if is_engine(Path(name)):
        return Path(name)
    found = [entry.folder for entry in store.entries() if entry.folder.name.startswith(name)]
    if len(found) != 1:
        raise ConfigError(f"{len(found) or 'no'} engines in {store.root} have an address that begins with {name!r}")
    return found[0]


_KINDS = {
    "leftover": "unfinished or set aside",
    "damaged": "damaged",
    "foreign": "another BEI version's, or another user's",
    "checkpoint": "checkpoint",
}


def _line(entry: Entry) -> str:
    """An engine or a checkpoint in one line: name, what it is, size, age, whether it is open."""
    made = entry.manifest
    what = _KINDS[entry.kind] if made is None else f"{made.engine} {made.precision}"
    of = entry.what if made is None else f"{made.source}@{made.revision[:12]}"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
    state = "in use" if entry.in_use else f"used {used}"
    return f"{entry.folder.name}  {what}  {entry.num_bytes / 1e6:.1f} MB  {state}  {of}".rstrip()
