"""The `bei engines` commands: list, verify and prune the cache; push and pull engines."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from bei_core.config.settings import Settings
from bei_core.engines.cache import EngineCache, publish_engine
from bei_core.engines.manifest import is_engine, unnamed, verify
from bei_core.engines.remote import RemoteEngine, RemoteEngines
from bei_core.errors import CheckpointError, ConfigError, DiskError, EngineCorruptError
from bei_core.storage.cache import Entry
from bei_core.storage.drivers import redact
from bei_core.storage.errors import OUTPUT, translate_os_errors

app = typer.Typer(no_args_is_help=True, help=__doc__)

CacheDir = Annotated[Optional[Path], typer.Option(help="the cache folder; by default BEI_CACHE_DIR")]  # noqa: UP045
Engines = Annotated[
    list[str] | None, typer.Argument(help="addresses, first digits of them, or folders; by default all")
]
Engine = Annotated[str, typer.Argument(help="an address (or its first digits) or a folder")]


@app.command("list")
def list_engines(cache_dir: CacheDir = None) -> None:
    """List the engines in the cache, then the fetched checkpoints, each the least recently used first."""
    cache = _cache(cache_dir)
    for entry in (*cache.entries(), *cache.checkpoint_entries()):
        typer.echo(_line(entry))


@app.command("verify")
def verify_engines(engines: Engines = None, cache_dir: CacheDir = None) -> None:
    """Check every file of engines against their manifests; exit with 1 and name the file of each that differs.

    An engine of another BEI version cannot be checked; that is a failure only if it was named.
    """
    cache = _cache(cache_dir)
    all_engines = [entry.folder for entry in cache.entries() if entry.kind != "leftover"]
    folders = [_find(cache, engine) for engine in engines or ()] or all_engines
    damaged = 0
    for folder in folders:
        try:
            manifest = verify(folder)
            typer.echo(f"{folder}: whole, {len(manifest.files)} files, {manifest.num_bytes / 1e6:.1f} MB")
            for name in unnamed(folder, manifest):
                typer.echo(f"warning: {folder / name} is not in the engine's manifest and cannot be checked", err=True)
        except (CheckpointError, DiskError) as error:
            typer.echo(str(error), err=True)
            damaged += bool(engines) or isinstance(error, (EngineCorruptError, DiskError))
    sys.exit(bool(damaged))


@app.command()
def prune(
    max_gb: Annotated[Optional[float], typer.Option(min=0, help="keep at most this size; 0: remove everything")] = None,  # noqa: UP045
    cache_dir: CacheDir = None,
) -> None:
    """Remove leftovers and, above a size, checkpoints and then engines, the least recently used first; none in use."""
    removed = _cache(cache_dir).evict(None if max_gb is None else int(max_gb * 1e9))
    for entry in removed:
        typer.echo(f"removed {_line(entry)}")
    typer.echo(f"{sum(entry.num_bytes for entry in removed) / 1e6:.1f} MB removed")


@app.command()
def push(
    engine: Engine,
    url: Annotated[str, typer.Argument(help="folder of an object store: s3://…, gs://…, azure://…, file:///…")],
    force: Annotated[bool, typer.Option(help="write it again if it is there")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Copy an engine into an object store, and print its URL."""
    typer.echo(RemoteEngines(url).push(_find(_cache(cache_dir), engine), force=force))


@app.command("pull")
def pull_engine(
    url: Annotated[str, typer.Argument(help="URL of one engine, as push printed it")],
    output: Annotated[Optional[Path], typer.Option(help="folder to write; by default the cache")] = None,  # noqa: UP045
    cache_dir: CacheDir = None,
) -> None:
    """Copy an engine from an object store, check it, and print where it is."""
    engine = RemoteEngine.at(url)
    manifest = engine.manifest()
    if manifest is None:
        raise CheckpointError(f"{redact(url)} is not an engine: it has no manifest.json")
    pull = partial(engine.pull, artifact=manifest.artifact)
    if output is None:
        lease = _cache(cache_dir).obtain(manifest.artifact, pull)
        lease.release()
        typer.echo(lease.folder)
    elif output.exists():
        raise ConfigError(f"{output} exists already; name a new folder")
    else:
        with translate_os_errors(output.parent, OUTPUT):
            publish_engine(output, pull)
        typer.echo(output)


def _cache(cache_dir: Path | None) -> EngineCache:
    return EngineCache.of(Settings.load({"cache_dir": cache_dir}, os.environ))


def _find(cache: EngineCache, name: str) -> Path:
    """The engine of an address, of its first digits, or of a folder. Raises ConfigError for none or several."""
    if is_engine(Path(name)):
        return Path(name)
    found = [entry.folder for entry in cache.entries() if entry.folder.name.startswith(name)]
    if len(found) != 1:
        raise ConfigError(f"{len(found) or 'no'} engines in {cache.root} have an address that begins with {name!r}")
    return found[0]


def _line(entry: Entry) -> str:
    """An entry in one line: name, what it is, size, in use or when last used, source."""
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
    state = "in use" if entry.in_use else f"used {used}"
    record = entry.record
    return f"{entry.folder.name}  {record.label}  {entry.num_bytes / 1e6:.1f} MB  {state}  {record.source}".rstrip()
