"""The `bei engines` commands: what is in the cache, whether it is whole, what goes, what is shared."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from bei_core.config.settings import Settings
from bei_core.engines.manifest import is_engine, unnamed, verify
from bei_core.engines.provider import store_of
from bei_core.engines.remote import Remote, RemoteEngine
from bei_core.engines.store import Entry, Store, publish
from bei_core.errors import CheckpointError, ConfigError, DiskError, EngineCorruptError
from bei_core.storage.disk import OUTPUT, writing
from bei_core.storage.objects import shown

app = typer.Typer(no_args_is_help=True, help=__doc__)

CacheDir = Annotated[Optional[Path], typer.Option(help="the store's folder; without it, BEI_CACHE_DIR's")]  # noqa: UP045
Engines = Annotated[list[str] | None, typer.Argument(help="addresses (or first digits), or folders; none: all")]
Engine = Annotated[str, typer.Argument(help="an address (or its first digits), or a folder")]


@app.command("list")
def list_engines(cache_dir: CacheDir = None) -> None:
    """List the engines of the store and the fetched checkpoints, each the least recently used first."""
    store = _store(cache_dir)
    for entry in (*store.entries(), *store.checkpoints()):
        typer.echo(_line(entry))


@app.command("verify")
def verify_engines(engines: Engines = None, cache_dir: CacheDir = None) -> None:
    """Check every file of engines against their manifests; exits with 1 and names the file of each that differs.

    Another version's engine cannot be checked: it is told, and no failure unless it was named.
    """
    store = _store(cache_dir)
    there = [entry.folder for entry in store.entries() if entry.kind != "leftover"]
    folders = [_find(store, engine) for engine in engines or ()] or there
    damaged = 0
    for folder in folders:
        try:
            manifest = verify(folder)
            typer.echo(f"{folder}: whole, {len(manifest.files)} files, {manifest.num_bytes / 1e6:.1f} MB")
            for name in unnamed(folder, manifest):
                typer.echo(f"warning: {folder / name} is not in the engine's manifest: nobody vouches for it", err=True)
        except (CheckpointError, DiskError) as fault:
            typer.echo(str(fault), err=True)
            damaged += bool(engines) or isinstance(fault, (EngineCorruptError, DiskError))
    sys.exit(bool(damaged))


@app.command()
def prune(
    max_gb: Annotated[Optional[float], typer.Option(min=0, help="keep at most so much; 0: nothing")] = None,  # noqa: UP045
    cache_dir: CacheDir = None,
) -> None:
    """Remove what was left behind; beyond a size fetched checkpoints, then engines; never what is in use."""
    removed = _store(cache_dir).trim(None if max_gb is None else int(max_gb * 1e9))
    for entry in removed:
        typer.echo(f"removed {_line(entry)}")
    typer.echo(f"{sum(entry.num_bytes for entry in removed) / 1e6:.1f} MB removed")


@app.command()
def push(
    engine: Engine,
    url: Annotated[str, typer.Argument(help="where engines are kept: s3://…, gs://…, azure://…, file:///…")],
    force: Annotated[bool, typer.Option(help="write it again where it is there")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Copy an engine into an object store, and print its URL."""
    typer.echo(Remote(url).push(_find(_store(cache_dir), engine), force=force))


@app.command("pull")
def pull_engine(
    url: Annotated[str, typer.Argument(help="URL of one engine, as push printed it")],
    output: Annotated[Optional[Path], typer.Option(help="folder to write; without it, the store")] = None,  # noqa: UP045
    cache_dir: CacheDir = None,
) -> None:
    """Copy an engine from an object store, check it, and print where it is."""
    engine = RemoteEngine.at(url)
    manifest = engine.manifest()
    if manifest is None:
        raise CheckpointError(f"{shown(url)} is not an engine: it has no manifest.json")
    pull = partial(engine.pull, artifact=manifest.artifact)
    if output is None:
        held = _store(cache_dir).obtain(manifest.artifact, pull)
        held.release()
        typer.echo(held.folder)
    elif output.exists():
        raise ConfigError(f"{output} is there; name a new folder")
    else:
        with writing(output, OUTPUT):
            publish(output, pull)
        typer.echo(output)


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
